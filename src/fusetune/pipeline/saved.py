"""What each method of fusing found, in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusetune.files.record import mapping, read_record
from fusetune.members import points
from fusetune.members.disk import write_json
from fusetune.members.points import OwnModel, model_file
from fusetune.methods.method import FusionResult
from fusetune.objective import Objective
from fusetune.run import MethodResult, RunFolder, again


def saved_results(folder: RunFolder) -> dict[str, FusionResult]:
    """The results of the stage's record, by method.

    Raises:
        RunError: If the record is damaged.
    """
    _ = folder.recorded("fuse")  # of the right shape

    def parse(content: Any) -> dict[str, FusionResult]:
        methods = mapping(content)["methods"]
        return {name: _result(folder, data) for name, data in methods.items()}

    return read_record(folder.record("fuse"), parse, again("fuse")) or {}


def save(folder: RunFolder, name: str, result: FusionResult) -> FusionResult:
    """Keep a method's result; a model of its own is read from its file from now on."""
    if isinstance(result.point, OwnModel):
        file = model_file(_own_models(folder), result.point.digest)
        file.parent.mkdir(parents=True, exist_ok=True)
        result.point.save(file)
        result = replace(result, point=OwnModel.open(file))
    folder.methods.mkdir(exist_ok=True)
    write_json(folder.methods / f"{name}.json", result.to_json())
    return result


def saved(
    folder: RunFolder, name: str, objectives: Sequence[Objective] = ()
) -> FusionResult | None:
    """What a method found, if it has run.

    Args:
        folder: Of the run.
        name: Of the method.
        objectives: Of which it has to have values.

    Raises:
        RunError: If its file is damaged.
    """

    def parse(content: Any) -> FusionResult:
        MethodResult.model_validate(content)
        result = _result(folder, content)
        for row in result.rows(name).values():
            if lacking := [o.name for o in objectives if o.name not in row.values]:
                raise ValueError(f"it has no value of {lacking[0]}")
        return result

    return read_record(
        folder.methods / f"{name}.json",
        parse,
        "Remove it: the method is then run again, from the evaluations that are kept.",
    )


def _result(folder: RunFolder, content: Any) -> FusionResult:
    """A result whose weights are those of the run's members.

    Raises:
        ValueError: If there are more or fewer.
    """
    result = FusionResult.from_json(content, _own_models(folder))
    members = len((folder.recorded("train") or {}).get("members", ()))
    for row in result.rows("").values():
        if not members or isinstance(row.point, OwnModel):
            continue
        if points.count(row.point) not in (members, members + 1):  # with the pretrained model
            raise ValueError("it has another number of weights than there are members")
    return result


def _own_models(folder: RunFolder) -> Path:
    """Where models are kept that are no combination of the members."""
    return folder.methods / "models"
