"""Whether what a folder of a model names and links to lies in that folder.

A folder that was handed over may hold an index that names files elsewhere, or a link in the
place of a template of chats. What it leads to would be read, written into the fused model, and
published with it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fusetune.errors import ModelError

WEIGHTS = re.compile(
    r"(model|pytorch_model|adapter_model|consolidated)([.-].*)?\.(safetensors|bin|pt|pth)|.*\.gguf"
)
"""Names of the model's own weights: read as numbers and written anew, never copied."""


def require_own_files(folder: Path) -> None:
    """Check that what a model's folder names and links to lies in it.

    Raises:
        ModelError: If an index of shards names a file elsewhere, or as `require_own_links`.
    """
    for index in sorted(folder.glob("*.index.json")):
        _check_index(index)
    require_own_links(folder)


def require_own_links(folder: Path) -> None:
    """Check that links beside a model's weights lead to files of models.

    They do in a cache of the Hub (`snapshots/` to `blobs/`), and where a file of the same name
    in the folder of another model is shared. A link of weights may lead anywhere: what it leads
    to is read as numbers, and written anew.

    Raises:
        ModelError: If a link leads to something else.
    """
    if not folder.is_dir():
        return
    for file in _links(folder):
        if not leads_to_a_model(file, folder):
            raise ModelError(
                f"{file} is a link to {file.resolve()}, which is no file of a model: its "
                "content would go into the fused model.",
                "Put the file itself in its place.",
            )


def leads_to_a_model(link: Path, folder: Path) -> bool:
    """Whether a link in a model's folder leads to a file of this model, or of another one."""
    target, home = link.resolve(), folder.resolve()
    cached = target.parent == home.parent.parent / "blobs"
    shared = target.name == link.name and _is_model(target.parent)
    return target.is_relative_to(home) or cached or shared


def _links(folder: Path) -> Iterator[Path]:
    """Links in a folder and below it, but for those of weights and those that lead nowhere."""
    for place, folders, files in os.walk(folder):
        for name in sorted((*folders, *files)):
            path = Path(place, name)
            if path.is_symlink() and path.exists() and not WEIGHTS.fullmatch(name):
                yield path


def _is_model(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or (folder / "tokenizer_config.json").is_file()


def _check_index(file: Path) -> None:
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name) for name in weight_map.values()}
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return  # damaged: who loads it says so
    for name in sorted(names):
        if Path(name).name != name or "\0" in name:
            raise ModelError(
                f"{file} points outside of its folder: {name!r}.",
                "Get the model again from a place that you trust.",
            )
