"""Average the checkpoints of a run into one model: no data, no labels, no search.

Weights are given, or follow a shape. A shape gives each update between two members the weight
that a decaying learning rate would have given it [Tian2025]_: a decay d from d(0) = 1 to
d(1) = 0 over the window of k members counts the update from member i − 1 to member i with its
mean over that stretch, D_i, so that member i has the weight D_i − D_{i+1}, with D_0 = 1 and
D_k = 0.

.. [Tian2025] C. Tian et al. WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging for
   LLM Pre-training. arXiv 2507.17634, 2025.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch

from fusetune.errors import MemberError, StageError
from fusetune.library.pool import BaseMember, as_pool
from fusetune.members.adapter_export import ExportForm
from fusetune.members.average import for_files
from fusetune.members.discover import Paths
from fusetune.members.export import export, files_beside, require_replaceable
from fusetune.members.header import TensorSpec
from fusetune.members.member import Member, architectures
from fusetune.members.pool import MemberPool, inspect
from fusetune.members.weights import TOLERANCE, FusionWeights

SHAPES = "mean, linear, sqrt, or ema:DECAY as ema:0.9"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Dtype = Literal["float32", "bfloat16", "float16"]

_INTEGRALS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x - x * x / 2.0,  # of d(x) = 1 − x
    "sqrt": lambda x: x - 2.0 / 3.0 * x**1.5,  # of d(x) = 1 − √x
}
"""Shape → the integral of its decay from 0 to x."""


@dataclass(frozen=True, slots=True)
class Averaged:
    """What an average is made of, before and after it is written.

    Attributes:
        folder: Where the model is, or will be.
        members: The checkpoints, in the order of their steps, and the base model behind them.
        weights: One for each.
        files: Names of the files that go along from the last checkpoint.
        architecture: Class of the model, empty where no configuration names one.
        parameters: Of the averaged model.
        nbytes: Of its weights.
        notes: What was left out or taken otherwise than a reader may expect.
    """

    folder: Path
    members: tuple[Member, ...]
    weights: FusionWeights
    files: tuple[str, ...]
    architecture: str
    parameters: int
    nbytes: int
    notes: tuple[str, ...] = ()


class Writing(TypedDict, total=False):
    """How an average is written; each can be given to `average`.

    Attributes:
        dtype: "float32", "bfloat16" or "float16"; as the tensors are stored by default.
        form: Of adapters: "merged" into their base (the default), one exact "adapter", or one
            that is cut to a rank, "adapter-svd:16".
        max_shard_size: Largest weight file; "5GB" by default.
        force: Replace what is in the folder, even if fusetune did not write it.
        dry_run: Say what would be done, and write nothing.
    """

    dtype: Dtype | None
    form: str
    max_shard_size: str | int
    force: bool
    dry_run: bool


def average(
    members: Paths,
    out: str | Path,
    *,
    last: int | None = None,
    from_step: int | None = None,
    every: int = 1,
    shape: str = "mean",
    weights: Sequence[float] | None = None,
    base: BaseMember = None,
    base_weight: float = 0.0,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    **writing: Unpack[Writing],
) -> Averaged:
    """Write the weighted average of checkpoints as an ordinary Hugging Face folder.

    No model is made of whole checkpoints: their files are read and the average's are written
    tensor by tensor, and no data are needed. Adapters of LoRA are averaged exactly,
    Σ w_i s_i B_i A_i.

    Args:
        members: A folder of checkpoints, a pattern as 'out/checkpoint-*', or a list of these.
        out: Folder of the averaged model; it appears when it is complete.
        last: Only the last so many checkpoints, by their steps.
        from_step: Only those of this step and later ones.
        every: n keeps every n-th of them, counted back from the last.
        shape: How the weights fall from one checkpoint to the other; see `weights_of`.
        weights: One for each checkpoint that is taken, oldest first, in the place of a shape.
        base: The model that the training began with, a module, folder or hub id; True for the
            base model of adapters.
        base_weight: Its weight, 0 to 1: a step back towards it, against forgetting. The
            weights of the checkpoints are multiplied by the rest.
        allow_pickle: Consent to `.bin`, `.pt`, `.pth` and `.ckpt` files (`weights_only`).
        trust_remote_code: Consent to code beside the base model.
        writing: See `Writing`.

    Returns:
        What was averaged, with which weights.

    Raises:
        MemberError: If the checkpoints do not fit together, there are fewer than asked for, or
            an option is none of those that there are.
        StageError: If `out` cannot be written: it holds something else, a checkpoint, or the
            disk is too small.
        RecipeError: If `form` is none.
    """
    ExportForm.parse(writing.get("form", "merged"))
    _check_dtype(writing.get("dtype"))
    inspection = inspect(members, allow_pickle=allow_pickle)
    if inspection.errors:
        raise inspection.errors[0]
    chosen = _chosen(inspection.members, last, from_step, every)
    values = _given(weights, chosen) if weights is not None else weights_of(shape, len(chosen))
    _check_base(base, base_weight)
    _check_place(Path(out).expanduser(), chosen, writing.get("force", False))
    paths = [member.path for member in chosen]
    trust = {"trust_remote_code": trust_remote_code}
    pool = as_pool(paths, None, None, base, allow_pickle, **trust)
    if base_weight > 0.0:
        values = [*((1.0 - base_weight) * value for value in values), base_weight]
    shape = shape if weights is None else "given"
    point = FusionWeights.normalised(values)
    return _written(pool, point, Path(out).expanduser(), shape, inspection.notes, writing)


def _written(
    pool: MemberPool,
    point: FusionWeights,
    folder: Path,
    shape: str,
    notes: tuple[str, ...],
    writing: Writing,
) -> Averaged:
    """Write the average, unless it is only to be described."""
    form = ExportForm.parse(writing.get("form", "merged"))
    name = writing.get("dtype")
    dtype = None if name is None else DTYPES[name]
    if not writing.get("dry_run", False):
        export(
            for_files(pool),
            point,
            pool,
            folder,
            extra={"method": "average", "shape": shape},
            max_shard_size=writing.get("max_shard_size", "5GB"),
            form=form,
            dtype=dtype,
            force=writing.get("force", False),
        )
    return Averaged(
        folder=folder,
        members=pool.members,
        weights=point,
        files=tuple(sorted(files_beside(pool))),
        architecture=next(iter(architectures(pool.config)), ""),
        parameters=pool.num_parameters,
        nbytes=sum(_bytes(spec, dtype) for spec in pool.tensors.values()),
        notes=notes,
    )


def weights_of(shape: str, k: int) -> list[float]:
    """The weights of k members, oldest first, that a shape gives.

    Args:
        shape: "mean": 1/k each. "linear" and "sqrt": of a learning rate that decays as 1 − x or
            1 − √x over the window, D_i − D_{i+1} as this module says. "ema:β": proportional to
            β^(k−1−i).
        k: At least 1.

    Raises:
        MemberError: If there is no such shape.
    """
    name, _, text = shape.partition(":")
    if name == "ema" and text:
        try:
            decay = float(text)
        except ValueError:
            decay = math.nan
        if 0.0 < decay < 1.0:
            raw = [decay ** (k - 1 - i) for i in range(k)]
            return [value / math.fsum(raw) for value in raw]
    if shape == "mean" or (k == 1 and shape in _INTEGRALS):
        return [1.0 / k] * k
    if shape in _INTEGRALS:
        integral, steps = _INTEGRALS[shape], k - 1
        means = [
            steps * (integral((i + 1) / steps) - integral(i / steps)) for i in range(steps)
        ]
        kept = [1.0, *means, 0.0]
        return [a - b for a, b in itertools.pairwise(kept)]
    raise MemberError(
        f"There is no shape {shape!r}.", f"Choose {SHAPES}, with a decay between 0 and 1."
    )


def _chosen(
    members: Sequence[Member], last: int | None, from_step: int | None, every: int
) -> list[Member]:
    """The checkpoints that are asked for, oldest first."""
    found = list(members)
    unordered = [m.name for m in found if m.step is None]
    if unordered and (last is not None or from_step is not None or every > 1):
        raise MemberError(
            f"The step of {unordered[0]} is not known, so that no checkpoint is the last.",
            "Name the checkpoints in the order of their steps, and leave out --last, --from "
            "and --every.",
        )
    if from_step is not None:
        found = [m for m in found if m.step is not None and m.step >= from_step]
    if last is not None and not 1 <= last <= len(found):
        raise MemberError(
            f"The last {last} checkpoints were asked for, and there are {len(found)}"
            f"{'' if from_step is None else f' from step {from_step} on'}.",
            f"Give --last from 1 to {len(found)}, or more checkpoints.",
        )
    found = found[-last:] if last is not None else found
    if every < 1:
        raise MemberError(f"--every must be 1 or more; got {every}.")
    found = found[::-every][::-1]
    if len(found) < 2:
        steps = ", ".join(str(m.step) for m in members)
        raise MemberError(
            f"An average needs two checkpoints or more, and {len(found)} "
            f"{'is' if len(found) == 1 else 'are'} left of those of step {steps}.",
            "Ask for more of them.",
        )
    return found


def _given(weights: Sequence[float], chosen: Sequence[Member]) -> list[float]:
    values = [float(value) for value in weights]
    names = ", ".join(m.name for m in chosen)
    if len(values) != len(chosen):
        raise MemberError(
            f"{len(values)} weights were given for {len(chosen)} checkpoints ({names}).",
            "Give one for each, oldest first.",
        )
    total = math.fsum(values)
    if not all(math.isfinite(v) and v >= 0.0 for v in values) or total <= 0.0:
        raise MemberError(
            f"Weights are numbers of 0 or more, not all 0; got {_list(values)}.",
            "Leave out the checkpoint that is to have none.",
        )
    if not math.isclose(total, 1.0, abs_tol=TOLERANCE):
        raise MemberError(
            f"The weights {_list(values)} sum to {total:g}, and not to 1.",
            f"Divided by their sum they are {_list([v / total for v in values])}.",
        )
    return values


def _bytes(spec: TensorSpec, dtype: torch.dtype | None) -> int:
    """Bytes of a tensor as it is written."""
    changes = dtype is not None and spec.dtype.is_floating_point
    return spec.numel * dtype.itemsize if changes and dtype is not None else spec.nbytes


def _check_dtype(name: str | None) -> None:
    if name is not None and name not in DTYPES:
        raise MemberError(
            f"An average is written as {', '.join(DTYPES)}; got {name!r}.",
            "Choose one of them, or leave dtype (--dtype) out to keep the checkpoints' own.",
        )


def _check_base(base: BaseMember, weight: float) -> None:
    with_base = base is not None and base is not False
    if not 0.0 <= weight <= 1.0 or (weight > 0.0) != with_base:
        raise MemberError(
            "A base model and its weight, above 0 and at most 1, go together; got the weight "
            f"{weight:g} and {'a base model' if with_base else 'no base model'}.",
            "Give both base (--base) and base_weight (--base-weight), or none of them.",
        )


def _list(values: Sequence[float]) -> str:
    return ",".join(f"{value:.6g}" for value in values)


def _check_place(folder: Path, members: Sequence[Member], force: bool) -> None:
    """Refuse to write over a checkpoint, or over what is not known to be replaceable."""
    place = folder.resolve()
    for member in members:
        path = member.path.resolve()
        if place == path or place in path.parents or path in place.parents:
            raise StageError(
                f"The average cannot be written to {folder}: the checkpoint {member.path} is "
                "there.",
                "Choose a folder beside the checkpoints.",
            )
    if not force:
        require_replaceable(folder)
