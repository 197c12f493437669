"""What each method of fusing found, in the run folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fusetune.members.disk import write_json
from fusetune.members.points import OwnModel, model_file
from fusetune.members.record import read_record
from fusetune.methods.method import FusionResult
from fusetune.run import MethodResult, RunFolder


def saved_results(folder: RunFolder) -> dict[str, FusionResult]:
    """The results of the stage's record, by method."""
    record = folder.recorded("fuse") or {"methods": {}}
    own = _own_models(folder)
    return {n: FusionResult.from_json(data, own) for n, data in record["methods"].items()}


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


def saved(folder: RunFolder, name: str) -> FusionResult | None:
    """What a method found, if it has run.

    Raises:
        RunError: If its file is damaged.
    """

    def parse(content: Any) -> FusionResult:
        MethodResult.model_validate(content)
        return FusionResult.from_json(content, _own_models(folder))

    return read_record(
        folder.methods / f"{name}.json",
        parse,
        "Remove it: the method is then run again, from the evaluations that are kept.",
    )


def _own_models(folder: RunFolder) -> Path:
    """Where models are kept that are no combination of the members."""
    return folder.methods / "models"
