"""An average of adapters as one adapter that PEFT loads: exact, or of a rank one chooses.

Side by side, the factors of k adapters of rank r are those of one adapter of rank k r. DoRA
keeps that form too: Σ w_i c_i ∘ (W + L_i R_i) = d ∘ (W + Δ) with d = Σ w_i c_i, which is the
DoRA adapter of change Δ whose magnitudes are the row lengths of the sum.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fusetune.errors import MemberError, RecipeError, StageError
from fusetune.members.adapter import CONFIG, WEIGHTS, AdaptedModule
from fusetune.members.adapter_average import AdapterAverage, check_apart
from fusetune.members.adapter_bind import trained_whole
from fusetune.members.adapter_keys import PREFIX, key_of
from fusetune.members.adapter_stack import Stack
from fusetune.members.low_rank import squared_distance, squared_norm, truncate
from fusetune.members.mixing import scale_of
from fusetune.members.points import Blend, OwnModel, Point

SVD = "adapter-svd:"


@dataclass(frozen=True, slots=True)
class ExportForm:
    """How a fused model is written.

    Attributes:
        adapter: As an adapter; merged into the base otherwise.
        rank: Of the adapter, cut off by SVD; None for the exact one.
    """

    adapter: bool = False
    rank: int | None = None

    @classmethod
    def parse(cls, text: str) -> ExportForm:
        """Of "merged", "adapter" or "adapter-svd:RANK".

        Raises:
            RecipeError: If it is none of them.
        """
        if text in ("merged", "adapter"):
            return cls(text == "adapter")
        rank = text.removeprefix(SVD)
        if text.startswith(SVD) and rank.isdecimal() and int(rank) > 0:
            return cls(True, int(rank))
        raise RecipeError(
            f"fuse.export is {text!r}.", "Write merged, adapter, or adapter-svd:16 (a rank)."
        )


def write_adapter(
    average: AdapterAverage, point: Point, folder: Path, rank: int | None = None
) -> dict[str, Any]:
    """Write adapter_model.safetensors and adapter_config.json.

    Args:
        average: Of adapters.
        point: Coefficients with sum 1.
        folder: Exists.
        rank: To cut off at; None for the exact adapter.

    Returns:
        For fusion.json: the largest rank of a module and, of a cut, the relative error of ΔW
        in the Frobenius norm, over all modules and for each.

    Raises:
        StageError: If the point is no adapter on this base: a model of its own, or
            coefficients whose sum is not 1; or if DoRA would have to be cut.
    """
    mixture = _require_mixture(average, point, rank)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    errors: dict[str, tuple[float, float]] = {}
    for name, stack in average.stacks.items():
        module = average.source.weights[name]
        left, right, lengths = _low(average, mixture, name, stack)
        if rank is not None:
            cut = truncate(left, right, rank)
            left, right, errors[module] = cut.left, cut.right, (cut.lost, cut.total)
        ranks[module] = right.shape[-2]
        tensors |= _named(average, module, left, right, lengths)
    tensors |= _others(average, mixture)
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(packed, folder / WEIGHTS, metadata={"format": "pt"})
    config = _config(average, ranks)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    return {"rank": max(ranks.values(), default=0), **_error_record(errors)}


def apart_distance(average: AdapterAverage, point: Point) -> float | None:
    """How far averaging A and B apart is from the exact average: ‖ΔW' − ΔW‖ / ‖ΔW‖.

    None where one of the two is not defined: other ranks or targets, DoRA, a model of its own.
    """
    try:
        check_apart(average.source)
    except MemberError:
        return None
    if isinstance(point, OwnModel):
        return None
    above = below = 0.0
    for name, stack in average.stacks.items():
        vector = average.vector(point, name)
        exact = stack.factors(vector)
        above += squared_distance(stack.factors(vector, apart=True), exact)
        below += squared_norm(*exact)
    return math.sqrt(above / below) if below > 0.0 else 0.0


def _require_mixture(average: AdapterAverage, point: Point, rank: int | None) -> Blend:
    if isinstance(point, OwnModel) or not math.isclose(scale_of(point), 1.0, abs_tol=1e-6):
        raise StageError(
            "This model is not its base with an adapter: its method left the averages of "
            "adapters.",
            hint="Write it merged (fuse.export: merged).",
        )
    if rank is not None and any(member.dora for member in average.source.members):
        raise StageError(
            "An average of DoRA adapters cannot be cut to a lower rank: its rows would not "
            "have the lengths that were trained any more.",
            hint="Write it exactly (fuse.export: adapter) or merged.",
        )
    return point


def _low(
    average: AdapterAverage, point: Blend, name: str, stack: Stack
) -> tuple[Tensor, Tensor, Tensor | None]:
    """L and R of the change, and DoRA's magnitudes if the members have them."""
    vector, apart = average.vector(point, name), average.apart
    left, right = stack.factors(vector, apart)
    if not any(member.dora for member in average.source.members):
        return left, right, None
    fused = stack.mixed(vector, 1.0, apart)
    lengths = torch.linalg.vector_norm(fused, dim=1 - stack.along)
    stretch = stack.stretch(vector, 1.0)
    if isinstance(stretch, Tensor):
        if not bool((stretch > 0).all()):
            raise StageError(
                f"The average of {name} is no DoRA adapter: a row of the base got no weight.",
                hint="Write it merged (fuse.export: merged).",
            )
        left, right = (left / stretch, right) if stack.along == 0 else (left, right / stretch)
    return left, right, lengths


def _adapted(average: AdapterAverage, module: str) -> AdaptedModule:
    """The factors of a module, of the first member that adapts it."""
    return next(m.modules[module] for m in average.source.members if module in m.modules)


def _wrapped(average: AdapterAverage) -> dict[str, int]:
    """Path of each module that PEFT will wrap → how many wrappers lie around it."""
    adapted = {module: _adapted(average, module) for module in average.source.weights.values()}
    paths = (m.rpartition(".")[0] if a.parameter else m for m, a in adapted.items())
    return dict(Counter(paths))


def _factors_of(average: AdapterAverage, module: str, adapted: AdaptedModule) -> str:
    """Where PEFT keeps the factors of a module: of a parameter, in its own wrapper."""
    if adapted.parameter is None:
        return f"{PREFIX}{module}"
    path, _, own = module.rpartition(".")
    owner = average.source.base.submodule(path)
    assert owner is not None
    targets = average.source.weights
    order = [n for n, _ in owner.named_parameters(recurse=False) if f"{path}.{n}" in targets]
    return f"{PREFIX}{path}{'.base_layer' * (len(order) - 1 - order.index(own))}"


def _named(
    average: AdapterAverage, module: str, left: Tensor, right: Tensor, lengths: Tensor | None
) -> dict[str, Tensor]:
    """The tensors of one module under PEFT's names."""
    adapted = _adapted(average, module)
    flipped = average.source.base.flipped(module, adapted)
    a, b = (left.mT, right.mT) if flipped else (right, left)
    if adapted.experts is not None:  # the inverse of how `AdapterSource.low` reads them
        a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
    embedding = "embedding_" if adapted.embedding else ""
    end = "" if adapted.embedding else ".weight"
    place = _factors_of(average, module, adapted)
    found = {f"{place}.lora_{embedding}A{end}": a, f"{place}.lora_{embedding}B{end}": b}
    if lengths is not None:
        found[f"{place}.lora_magnitude_vector"] = lengths
    return found


def _others(average: AdapterAverage, point: Blend) -> dict[str, Tensor]:
    """Averaged biases of LoRA, tensors that are averaged whole, and what the base lacks."""
    source = average.source
    base, first = source.base, source.given[0]
    found: dict[str, Tensor] = {}
    for name, module in source.biases.items():
        values = average.mixture(point, name).values
        parts = [(source.bias(i, module), w) for i, w in enumerate(values) if w != 0.0]
        added = [part * w for part, w in parts if part is not None]
        if added:
            found[f"{PREFIX}{module}.lora_B.bias"] = torch.stack(added).sum(dim=0)
    wrapped, rows = _wrapped(average), _rows(average)
    averaged = {n: v for n, v in average.small(point) if n in source.whole}
    for name, indices in rows.items():
        module = name.rpartition(".")[0]
        found[f"{PREFIX}{module}.token_adapter.trainable_tokens_delta"] = averaged.pop(name)[
            torch.tensor(indices)
        ].to(source.tensors[name].dtype)
    # Whole tensors of the first member: the average, or what all members have in common. Under
    # every name that PEFT looks for, where the base has several for one tensor.
    names = {n: None for name in first.whole for n in (name, *base.tied.get(name, ()))}
    for name in {**names, **base.laid}:
        stored = next((n for n in base.tied.get(name, ()) if n in base.specs), name)
        dtype = first.tensors[first.whole[name]].dtype if name in first.whole else None
        if stored in averaged:
            value = averaged[stored]
        elif name in base.laid or trained_whole(first, name):
            value = base.tensors[stored]
        else:
            continue
        # Tied names get a copy each: the format wants no tensor in a file twice.
        found[key_of(name, wrapped, rows)] = value.to(dtype or value.dtype, copy=True)
    return found


def _rows(average: AdapterAverage) -> dict[str, list[int]]:
    """Name of an embedding's weight → the rows that any member trains, in order."""
    found: dict[str, set[int]] = {}
    for member in average.source.members:
        for name, (_, rows) in member.rows.items():
            found.setdefault(name, set()).update(rows)
    return {name: sorted(rows) for name, rows in found.items()}


def _config(average: AdapterAverage, ranks: Mapping[str, int]) -> dict[str, Any]:
    """adapter_config.json: the scaling is in the factors, so that alpha is r."""
    common = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    other = {module: rank for module, rank in ranks.items() if rank != common}
    parameters = sorted(m for m in ranks if _adapted(average, m).parameter is not None)
    rows = _rows(average)
    return {
        **average.source.members[0].adapter,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": other,
        "alpha_pattern": dict(other),
        "use_rslora": False,
        "use_dora": any(member.dora for member in average.source.members),
        "init_lora_weights": True,
        "target_modules": sorted(ranks.keys() - set(parameters)),
        "target_parameters": parameters or None,
        "trainable_token_indices": {n.removesuffix(".weight"): r for n, r in rows.items()}
        or None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
        "inference_mode": True,
    }


def _error_record(errors: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    if not errors:
        return {}
    lost = math.fsum(cut for cut, _ in errors.values())
    total = math.fsum(whole for _, whole in errors.values())
    relative = {m: math.sqrt(c / w) if w > 0.0 else 0.0 for m, (c, w) in errors.items()}
    return {
        "relative_error": math.sqrt(lost / total) if total > 0.0 else 0.0,
        "relative_error_of_modules": relative,
    }
