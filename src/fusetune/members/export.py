"""Write θ̄(w) as an ordinary Hugging Face folder, all of it or nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from fusetune.errors import StageError
from fusetune.members.adapter_export import ExportForm, write_adapter
from fusetune.members.average import AdapterAverage, Average
from fusetune.members.card import model_card
from fusetune.members.companions import companions, copy_files, without_tokenizer
from fusetune.members.disk import (
    full_disk_is_an_error,
    replaced_folder,
    require_space,
    write_json,
)
from fusetune.members.points import Combination, Point, to_json
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.members.writer import write_average

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FUSION", "ExportForm", "export", "model_card"]

FUSION = "fusion.json"
MERGED = ExportForm()


def export(
    average: Average,
    point: Point,
    pool: MemberPool,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    beside: Sequence[Path] = (),
    card: str | None = None,
    extra: Mapping[str, Any] | None = None,
    max_shard_size: str | int = "5GB",
    form: ExportForm = MERGED,
    dtype: torch.dtype | None = None,
    force: bool = False,
) -> Path:
    """Write the fused model so that `from_pretrained(folder)` gives what was evaluated.

    Adapters are merged into their base, unless `form` asks for one adapter. A quantised base
    is written as the plain weights that its layers stand for.

    Files: model.safetensors (or shards and their index), config.json, README.md, fusion.json,
    and all that a loader reads beside the last checkpoint's weights; see `companions`. They are
    written into a temporary sibling, which then takes the folder's place.

    Args:
        average: Of the pool.
        point: w, or whatever else a method chose.
        pool: The members.
        folder: Made, or replaced as a whole if an earlier export made it.
        tokenizer: Or a processor; saved in the place of the last checkpoint's own.
        template: Folder that the configuration comes from; by default the last checkpoint.
        config: Taken where neither a checkpoint nor the evaluated model has a config.json.
        beside: Folders of the model that the training began with, for what checkpoints lack.
        card: README.md; by default `model_card` without metrics.
        extra: More keys for fusion.json, such as "method" and "validation".
        max_shard_size: Largest weight file, in bytes or as "5GB".
        form: Of adapters: merged, one exact adapter, or one of a lower rank.
        dtype: Of the written floating-point tensors; by default as the members store them.
        force: Replace the folder whatever is in it.

    Returns:
        The folder.

    Raises:
        StageError: If the disk is too small, the folder holds something else, or the point
            cannot be written in that form.
        ValueError: If `extra` has a key that fusion.json has already.
    """
    folder = Path(folder)
    source = Path(template) if template is not None else pool.last.loadable
    record = fusion_record(pool, point)
    if clash := record.keys() & (extra or {}).keys():
        raise ValueError(f"`extra` cannot replace {', '.join(sorted(clash))} of {FUSION}.")
    if not force:
        require_replaceable(folder)
    require_space(folder, sum(info.nbytes for info in pool.tensors.values()))
    files = files_beside(pool, beside)
    with full_disk_is_an_error(folder.parent), replaced_folder(folder) as new:
        copy_files(files if tokenizer is None else without_tokenizer(files), new)
        if form.adapter:
            record["adapter"] = _write_adapter(average, point, new, form)
        else:
            write_average(average, point, new, max_shard_size=max_shard_size, dtype=dtype)
            _write_generation_config(pool, new)
        _write_config(average, pool, source / "config.json", config or {}, new, dtype)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
        if card is None:
            card = model_card(pool, point, name=folder.name, adapter=form.adapter)
        (new / "README.md").write_text(card, encoding="utf-8")
        write_json(new / FUSION, finite({**record, **(extra or {})}))
    return folder


def files_beside(pool: MemberPool, beside: Sequence[Path] = ()) -> dict[str, Path]:
    """Name → file of all that an export of a pool copies beside the weights.

    Args:
        pool: The members.
        beside: Folders of the model that the training began with, for what checkpoints lack.
    """
    return companions([pool.members[i] for i in pool.trained], [*beside, *_base_folder(pool)])


def export_chain(
    average: Average,
    point: Point,
    pool: MemberPool,
    folder: Path,
    extra: Mapping[str, Any],
) -> Path:
    """Write a fused model of sentence-transformers by its own `save_pretrained`.

    As members, such models are kept as one file of the model's own names; `save_pretrained`
    writes a folder for each module, and other names into them. fusion.json goes along.

    Args:
        average: Of the pool; its model is left with the point's parameters.
        point: w.
        pool: The members.
        folder: Made, or replaced as a whole if an earlier export made it.
        extra: More keys for fusion.json.

    Raises:
        StageError: If the disk is too small or the folder holds something else.
    """
    require_replaceable(folder)
    require_space(folder, sum(info.nbytes for info in pool.tensors.values()))
    average.into_model(point)
    model: Any = average.model
    with full_disk_is_an_error(folder.absolute().parent), replaced_folder(folder) as new:
        model.save_pretrained(str(new), create_model_card=False)
        write_json(new / FUSION, finite({**fusion_record(pool, point), **extra}))
    return folder


def fusion_record(pool: MemberPool, point: Point) -> dict[str, Any]:
    """What fusion.json always has: the version, and each member with its coefficient.

    Of a model of its own, the coefficients are null and "model" is its digest; of weights by
    layer, they are null and "layers" has those of every group. Of a quantised base,
    "quantization" says how.
    """
    values: Sequence[float | None] = [None] * len(pool)
    own = to_json(point)
    if isinstance(point, FusionWeights | Combination):
        values, own = point.values, {}
    quantised = "" if pool.adapters is None else pool.adapters.base.quantisation
    return {
        "fusetune": version("fusetune"),
        "fingerprint": pool.fingerprint,
        **({"quantization": quantised} if quantised else {}),
        **own,
        "members": [
            {"name": m.name, "step": m.step, "weight": weight, "sha256": m.sha256}
            for m, weight in zip(pool.members, values, strict=True)
        ],
    }


def require_replaceable(folder: Path) -> None:
    """Nothing but an earlier export may be replaced: a mistyped folder must survive."""
    if folder.is_dir() and ((folder / FUSION).exists() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise StageError(
            f"{folder} exists and is no exported model (it has no {FUSION}).",
            hint="Choose another folder, or remove this one.",
        )


def _write_adapter(
    average: Average, point: Point, new: Path, form: ExportForm
) -> dict[str, Any]:
    if not isinstance(average, AdapterAverage):
        raise StageError(
            "Whole models cannot be written as an adapter.", hint="Write fuse.export: merged."
        )
    return write_adapter(average, point, new, form.rank)


def _write_config(
    average: Average,
    pool: MemberPool,
    path: Path,
    default: Mapping[str, Any],
    new: Path,
    written: torch.dtype | None,
) -> None:
    """config.json of the template, else of the model, with the precision that was evaluated.

    `from_pretrained` casts to the configuration's dtype, which would change the numbers.
    """
    if pool.adapters is not None:
        config = dict(pool.config)  # of the base, whatever lies beside an adapter
    elif path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
    else:
        config = _config_of(average) or dict(default)
    if not config:
        return
    model = average.filled
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} if model else set()
    dtype = written or (dtypes.pop() if len(dtypes) == 1 else pool.dtype)
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    config[key] = str(dtype).removeprefix("torch.")
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (new / "config.json").write_text(text, encoding="utf-8")


def _config_of(average: Average) -> dict[str, Any]:
    """Of the model that averages are put into; empty if there is none of Transformers."""
    model = average.filled
    to_json_string = getattr(getattr(model, "config", None), "to_json_string", None)
    if to_json_string is None:
        return {}
    found: dict[str, Any] = json.loads(to_json_string())
    return {**found, "architectures": [type(model).__name__]}


def _write_generation_config(pool: MemberPool, new: Path) -> None:
    """Of adapters, the settings of generation are the base model's, as those of no other."""
    base = None if pool.adapters is None else pool.adapters.base.model
    generation = getattr(base, "generation_config", None)
    if generation is not None and not (new / "generation_config.json").exists():
        generation.save_pretrained(new)


def _base_folder(pool: MemberPool) -> list[Path]:
    """The folder of the model that adapters lie on; a hub id's in the local cache."""
    if pool.adapters is None:
        return []
    name = getattr(getattr(pool.adapters.base.model, "config", None), "_name_or_path", "")
    return local_folder(name)


def local_folder(name: str, revision: str | None = None) -> list[Path]:
    """The folder of a model by its name, if it is on this machine: nothing is fetched."""
    if not name:
        return []
    if Path(name).is_dir():
        return [Path(name)]
    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # no hub id
        return []
    return [Path(config).parent] if isinstance(config, str) else []


def finite(value: Any) -> Any:
    """The same JSON value with null for NaN and infinities, which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
