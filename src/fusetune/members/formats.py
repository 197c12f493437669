"""Checkpoints that are no safetensors: what stands at a path, told by names alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fusetune.errors import MemberError

ADAPTER = "adapter_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
WHOLE = ("pytorch_model.bin", "pytorch_model_fsdp.bin")
"""Of Transformers and of DeepSpeed's zero_to_fp32.py; of FSDP's full state dict."""

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
GGUF = ".gguf"
BESIDE = re.compile(
    r"(optimizer|scheduler|scaler|sampler|rng_state|random_states|training_args|dl_state_dict"
    r"|custom_checkpoint|zero_pp_rank|bf16_zero|fp16_zero|mp_rank|meta\.pt|.+_rank_?\d"
    r"|.+_optim_states|.+_model_states|pytorch_model-\d+-of-\d+)"
)
"""Names of files beside the weights, and of parts of weights."""

CONSENT = (
    "If you trust where it comes from, consent with --allow-pickle, in a recipe with "
    "model.allow_pickle: true, in Python with allow_pickle=True: it is then read with "
    "weights_only, which builds nothing but tensors and plain values."
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """Weights in another format than safetensors.

    Attributes:
        format: How they are read.
        files: One, or the shards.
        index: JSON file that says which shard has which tensor.
        adapter: Whether they are an adapter of PEFT.
    """

    format: Literal["pickle", "gguf"]
    files: tuple[Path, ...]
    index: Path | None = None
    adapter: bool = False


def find(path: Path) -> Foreign | None:
    """The weights at a path, a file or a folder; None if it has none in another format."""
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        return None
    for name in WHOLE:
        if (path / name).is_file():
            return Foreign("pickle", (path / name,))
        if (path / name).is_dir():  # zero_to_fp32.py makes a folder of that name
            return find(path / name)
    shards = tuple(sorted(path.glob("pytorch_model-*-of-*.bin")))
    if shards or (path / PICKLED_INDEX).is_file():
        return Foreign("pickle", shards, path / PICKLED_INDEX)
    if (path / ADAPTER).is_file():
        return Foreign("pickle", (path / ADAPTER,), adapter=True)
    single = [*path.glob("model*.pt"), *path.glob("model*.pth")]
    ggufs = list(path.glob(f"*{GGUF}"))
    if len(single) == 1:
        return Foreign("pickle", (single[0],))
    return Foreign("gguf", (ggufs[0],)) if len(ggufs) == 1 and not single else None


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


def _file(path: Path) -> Foreign | None:
    if path.suffix == GGUF:
        return Foreign("gguf", (path,))
    fits = path.suffix in PICKLES and not BESIDE.match(path.name)
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
