"""Models that are a chain of modules with a folder each, as those of sentence-transformers.

`save_pretrained` writes the first module's tensors beside the configuration and the others'
into folders of their own, under names that are not the model's. As members they are kept as one
file of the model's own names; a fused one is written by the model itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fusetune.members.average import Average
from fusetune.members.disk import (
    full_disk_is_an_error,
    replaced_folder,
    require_space,
    write_json,
)
from fusetune.members.export import FUSION, finite, fusion_record, require_replaceable
from fusetune.members.points import Point
from fusetune.members.pool import MemberPool


def is_chain(model: nn.Module) -> bool:
    """Whether `save_pretrained` of a model writes a folder for each of its modules."""
    return isinstance(model, nn.Sequential) and hasattr(model, "save_pretrained")


def export_chain(
    average: Average,
    point: Point,
    pool: MemberPool,
    folder: Path,
    extra: Mapping[str, Any],
) -> Path:
    """Write the fused model by its own `save_pretrained`, and fusion.json.

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
