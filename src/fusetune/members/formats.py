"""Checkpoints that are no safetensors: what stands at a path, told by names alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fusetune.errors import MemberError
from fusetune.members.checkpoints.steps import is_numbered

ADAPTER = "adapter_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
WHOLE = ("pytorch_model.bin", "pytorch_model_fsdp.bin")
"""Of Transformers and of DeepSpeed's zero_to_fp32.py; of FSDP's full state dict."""

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
SAFETENSORS = ".safetensors"
GGUF = ".gguf"
SHARD = re.compile(r".+-[0-9]+-of-[0-9]+\.(safetensors|bin)")
USUAL = (
    *WHOLE,
    PICKLED_INDEX,
    ADAPTER,
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
"""Names of weights that make the folder around them a checkpoint."""

UNFINISHED = re.compile(
    r"\.?(tmp|temp)[-_.].+|.+[-_.](tmp|temp|partial|incomplete)|.+\.(part|new|tmp\w*)|.+~"
)
"""Names that programs give to what they are still writing."""

BESIDE = re.compile(
    r"(optimizer|scheduler|scaler|sampler|rng_state|random_states|training_args|dl_state_dict"
    r"|custom_checkpoint|zero_pp_rank|bf16_zero|fp16_zero|mp_rank|meta\.pt|.+_rank_?\d"
    r"|.+_optim_states|.+_model_states|.+-\d+-of-\d+\.)"
)
"""Names of files beside the weights, and of parts of weights."""

CONSENT = (
    "If you trust where it comes from, consent with --allow-pickle, in a recipe with "
    "model.allow_pickle: true, in Python with allow_pickle=True: it is then read with "
    "weights_only, which builds nothing but tensors and plain values."
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """Weights in another format than safetensors, or in a safetensors file by itself.

    Attributes:
        format: How they are read.
        files: One, or the shards.
        index: JSON file that says which shard has which tensor.
        adapter: Whether they are an adapter of PEFT.
    """

    format: Literal["pickle", "gguf", "safetensors"]
    files: tuple[Path, ...]
    index: Path | None = None
    adapter: bool = False


def find(path: Path) -> Foreign | None:
    """The weights at a path, a file or a folder; None if a folder is to be read as it is.

    That is one with model.safetensors, shards and their index, or with nothing.
    """
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        return None
    for name in WHOLE:
        if (path / name).is_file():
            return Foreign("pickle", (path / name,))
        if (path / name).is_dir():  # zero_to_fp32.py makes a folder of that name
            return find(path / name)
    if (path / PICKLED_INDEX).is_file():
        shards = tuple(sorted(path.glob("pytorch_model-*-of-*.bin")))
        return Foreign("pickle", shards, path / PICKLED_INDEX)
    if (path / ADAPTER).is_file():
        return Foreign("pickle", (path / ADAPTER,), adapter=True)
    return _single(path)


def _single(folder: Path) -> Foreign | None:
    """The one file of weights in a folder; of several, which is meant cannot be known."""
    there = sorted(file for file in folder.iterdir() if file.is_file())
    files = [file for file in there if not BESIDE.match(file.name)]
    pickles = [
        file
        for file in files
        if (file.suffix in (".pt", ".pth") and file.name.startswith("model"))
        or (file.suffix in PICKLES and is_numbered(folder.name))
    ]
    safe = [file for file in files if file.suffix == SAFETENSORS]
    ggufs = [file for file in files if file.suffix == GGUF]
    for found in (safe, pickles, ggufs):
        if found:
            return _file(found[0]) if len(found) == 1 else None
    return None


def looks_like(path: Path) -> bool:
    """Whether weights in another format stand at a path, or parts of some."""
    return find(path) is not None or _parts(path) is not None


def require_whole(path: Path) -> None:
    """Refuse a folder that holds what each process of a training saved of its own part.

    Raises:
        MemberError: With the command that puts the parts together.
    """
    found = _parts(path)
    if found is not None:
        what, command = found
        raise MemberError(f"{path} holds {what}, which are no whole model.", command)


def has_usual_name(file: Path) -> bool:
    """Whether a file's name is one that makes the folder around it a checkpoint."""
    return file.name in USUAL or SHARD.fullmatch(file.name) is not None


def is_unfinished(path: Path) -> str | None:
    """Why a path is a checkpoint that is being written, or was cut off at it; told by names."""
    if path.is_symlink() and not path.exists():
        return "it is a link to nothing"
    if not UNFINISHED.fullmatch(path.name):
        return None
    if path.is_dir():
        begun = looks_like(path) or _usual(path) or lacks_weights(path) is not None
    else:
        begun = _is_unfinished_file(path.name)
    return "its name is that of a checkpoint that is still being written" if begun else None


def lacks_weights(path: Path) -> str | None:
    """Why a folder that looks like a checkpoint is none; None if it does not look like one."""
    if not path.is_dir() or _usual(path):
        return None
    return lacks(path.name, sorted(file.name for file in path.iterdir()))


def lacks(folder: str, names: Sequence[str]) -> str | None:
    """Why a folder without weights is no whole checkpoint, by its name and the names in it."""
    shard = next((name for name in names if SHARD.fullmatch(name)), None)
    unfinished = next((name for name in names if _is_unfinished_file(name)), None)
    if shard is not None:
        return f"it holds shards without their index ({shard})"
    if unfinished is not None:
        return f"its weights have the name of a file that is still being written ({unfinished})"
    if "trainer_state.json" in names or any(BESIDE.match(name) for name in names):
        return "it holds the state of a training, and no weights"
    if "config.json" in names or "adapter_config.json" in names:
        return "it holds a configuration, and no weights"
    return "it holds no weights" if is_numbered(folder) else None


def _is_unfinished_file(name: str) -> bool:
    parts = {f".{part.strip('~')}" for part in name.split(".")[1:]}
    weights = {SAFETENSORS, GGUF, *PICKLES}
    return UNFINISHED.fullmatch(name) is not None and not parts.isdisjoint(weights)


def _usual(folder: Path) -> bool:
    return any((folder / name).exists() for name in USUAL)


def _file(path: Path) -> Foreign | None:
    if path.suffix == GGUF:
        return Foreign("gguf", (path,))
    if BESIDE.match(path.name):
        return None
    if path.suffix == SAFETENSORS:
        return Foreign("safetensors", (path,))
    fits = path.suffix in PICKLES
    return Foreign("pickle", (path,), adapter=path.name == ADAPTER) if fits else None


def _parts(path: Path) -> tuple[str, str] | None:
    """What parts of a model a folder holds, and what makes one of them."""
    if not path.is_dir():
        return None
    if any(_states(path)):
        script = path / "zero_to_fp32.py"
        program = str(script) if script.is_file() else "-m deepspeed.utils.zero_to_fp32"
        folder = shlex.quote(str(path))
        command = f"python {program} {folder} {folder} --safe_serialization"
        return "the partitions of DeepSpeed's ZeRO", f"Put them together: {command}"
    for place in (path, path / "pytorch_model_fsdp_0"):
        if next(place.glob("*.distcp"), None) is None:
            continue
        here, there = shlex.quote(str(place)), shlex.quote(str(path))
        command = f"accelerate merge-weights {here} {there}"
        if (place / "meta.pt").is_file():  # Lightning writes it, and reads it again
            target = shlex.quote(str(path.with_name(f"{path.stem}-whole.ckpt")))
            program = "python -m lightning.pytorch.utilities.consolidate_checkpoint"
            command = f"{program} {here} --output_file {target}"
        return "the shards of a sharded state dict of FSDP", f"Put them together: {command}"
    if next(path.glob("pytorch_model*_rank*.bin"), None) is not None:
        hint = "Save with FSDP's FULL_STATE_DICT, or with SHARDED_STATE_DICT and merge that."
        return "one part for each process (FSDP's LOCAL_STATE_DICT)", hint
    return None


def _states(path: Path) -> Iterator[Path]:
    """Files of DeepSpeed: in the folder, or in the one of a step, or where Lightning has it."""
    for pattern in ("", "global_step*/", "checkpoint/"):
        yield from path.glob(f"{pattern}*_model_states.pt")
        yield from path.glob(f"{pattern}*_optim_states.pt")
