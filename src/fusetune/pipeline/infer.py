"""Checkpoints of a finished run, a data file and a few options → the recipe that fuses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from fusetune.errors import DataError, RecipeError
from fusetune.members.member import Member
from fusetune.members.pool import inspect
from fusetune.pipeline import finished
from fusetune.pipeline.asking import Wanted, inputs, labels, metrics
from fusetune.pipeline.finished import CLASSIFICATION, Finished
from fusetune.pipeline.several import require_one_kind, require_one_run
from fusetune.recipe import Recipe
from fusetune.recipe_file import given, parse
from fusetune.recipe_sections import WITHOUT_COLUMNS
from fusetune.recipe_yaml import write_yaml
from fusetune.tasks.data import read
from fusetune.tasks.files import READERS
from fusetune.tasks.files.delimited import CsvOptions

EVALUATIONS_PER_MEMBER = 6
"""Of the search over w; the default recipe's 90 evaluations for 15 members."""


@dataclass(frozen=True, slots=True)
class Inferred:
    """A recipe, and what the user should know of how it came about.

    Attributes:
        recipe: Valid.
        name: For the run folder, from the folder around the checkpoints.
        notes: Lines for the user.
    """

    recipe: Recipe
    name: str
    notes: tuple[str, ...]


def infer(wanted: Wanted, overrides: Sequence[str] = ()) -> Inferred:
    """The recipe that fuses finished checkpoints; nothing is computed.

    Args:
        wanted: What the user gave.
        overrides: Dotted keys, laid over what was inferred.

    Raises:
        MemberError: If there are fewer than two checkpoints, or they do not fit together; then
            the message has a command for each group that does.
        DataError: If the data cannot be read.
        RecipeError: If something cannot be known; the message says what, all at once, and
            what is known.
    """
    members = _members(wanted)
    found = finished.read(members[-1], wanted.kind)
    kind = found.kind
    if kind is None:
        raise RecipeError(
            f"{members[-1].path} is {found.architecture}, for which there is no kind of task.",
            "Give --kind, or use fusetune.fuse with an evaluation of your own.",
        )
    alone = kind in WITHOUT_COLUMNS
    data, rows = (_tasks(wanted), None) if alone else _data(wanted, overrides)
    asked: list[str] = []
    columns = rows["validation"].column_names if rows else []
    task: dict[str, Any] = {"kind": kind, "data": data}
    if rows is None and not alone:
        asked.append("--data: a file with labelled rows (.jsonl, .json, .csv, .tsv, .parquet)")
    elif rows is not None and "test" not in rows:
        task["split"] = {"halve": "validation"}
    task |= {} if alone else inputs(wanted, kind, columns, asked)
    task["metrics"] = metrics(wanted, kind, asked)
    if kind == CLASSIFICATION and rows is not None and task.get("label") in columns:
        task["options"] = {"labels": labels(wanted, found, rows["validation"], task, asked)}
    model = _model(wanted, found, members[-1], asked)
    if asked:
        raise _asking(found, kind, members, columns, asked)
    tree = {
        "task": task,
        "model": model,
        "search": {"trials": 0},
        "train": {
            "checkpoints": [str(Path(m).expanduser().absolute()) for m in wanted.members],
            "members": len(members),
        },
        "fuse": {
            "evaluations": EVALUATIONS_PER_MEMBER * (len(members) + wanted.with_base),
            **({"base_member": True} if wanted.with_base else {}),
        },
    }
    recipe = parse(write_yaml(tree), overrides, name="The inferred recipe")
    name = f"{members[-1].checkpoint.resolve().parent.name}-fused"
    return Inferred(recipe, name, tuple(_notes(wanted, found, members, task, rows or {})))


def _members(wanted: Wanted) -> tuple[Member, ...]:
    inspection = inspect(list(wanted.members), allow_pickle=wanted.allow_pickle, own_model=True)
    require_one_kind(wanted, inspection.members)
    if inspection.errors:
        raise inspection.errors[0]
    require_one_run(wanted, inspection.members)
    return inspection.members


def _tasks(wanted: Wanted) -> str:
    """The folder with a harness's tasks, or the harness itself."""
    if wanted.data is None:
        return "lm-eval"
    path = Path(wanted.data).expanduser()
    return str(path.absolute()) if path.is_dir() else wanted.data


def _data(
    wanted: Wanted, overrides: Sequence[str]
) -> tuple[str | dict[str, str], Mapping[str, datasets.Dataset] | None]:
    """The recipe's `task.data`, and its rows; None where no data was given."""
    if wanted.data is None:
        return "", None
    path = Path(wanted.data).expanduser()
    if path.suffix in READERS and not path.exists():
        raise DataError(f"The data file {path} does not exist.", "Check --data.")
    data: str | dict[str, str] = str(path.absolute()) if path.is_dir() else wanted.data
    if path.is_file():
        data = {"validation": str(path.absolute())}
    if wanted.test is not None:
        if isinstance(data, str):
            raise RecipeError(
                f"--test goes with one file as --data; got {wanted.data}.",
                "Give the file that chooses as --data, the file that reports as --test.",
            )
        test = Path(wanted.test).expanduser().absolute()
        if test.exists() and test.samefile(path):
            raise RecipeError(
                f"--data and --test are both {wanted.test}: rows that choose cannot report.",
                "Leave out --test: then half of the rows choose and the others report.",
            )
        data["test"] = str(test)
    columns = [name for name in (*wanted.text, wanted.label) if name]
    csv = CsvOptions.of(given(overrides, "task.options.csv"))
    rows = read(data, columns=columns, csv=csv, train=False)
    if "validation" not in rows:
        raise RecipeError(
            f"{wanted.data} has no validation split; it has {', '.join(rows)}.",
            "Give the file that chooses as --data, the file that reports as --test.",
        )
    return data, {str(name): split for name, split in rows.items()}


def _model(wanted: Wanted, found: Finished, member: Member, asked: list[str]) -> dict[str, Any]:
    """The recipe's section `model`."""
    name = wanted.model or found.model
    if wanted.with_base and wanted.model is None and found.lora is None:
        asked.append("--model: folder or hub id of the model that the training began with")
        return {}
    if name is None:
        what = "the base model" if found.lora is not None else "the model, for its tokenizer"
        asked.append(f"--model: folder or hub id of {what}; none lies beside {member.path}")
        return {}
    if Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser().absolute())
    section: dict[str, Any] = {"name": name}
    if wanted.allow_pickle:
        section["allow_pickle"] = True
    if wanted.model is None and found.revision:
        section["revision"] = found.revision
    if found.lora is not None:
        section["lora"] = dict(found.lora)
        if found.quantization != "none":
            section["quantization"] = found.quantization
    return section


def _asking(
    found: Finished,
    kind: str,
    members: Sequence[Member],
    columns: Sequence[str],
    asked: Sequence[str],
) -> RecipeError:
    named = f", labels {', '.join(found.names[:20])}" if kind == CLASSIFICATION else ""
    known = f"{len(members)} checkpoints of {found.architecture} ({kind}{named})"
    has = f"\nThe data has the columns {', '.join(columns)}." if columns else ""
    lines = "\n".join(f"  {line}" for line in asked)
    return RecipeError(
        f"{known} can be fused; what their files do not tell is:\n{lines}{has}\n",
        "Add these options to the command.",
    )


def _notes(
    wanted: Wanted,
    found: Finished,
    members: Sequence[Member],
    task: Mapping[str, Any],
    rows: Mapping[str, datasets.Dataset],
) -> list[str]:
    names = task.get("options", {}).get("labels", ())
    named = f", labels {', '.join(names[:20])}" if names else ""
    lines = [
        f"{len(members)} checkpoints of {found.architecture}: {members[0].name} to "
        f"{members[-1].name}; {task['kind']}{named}"
    ]
    if any((member.path / "optimizer.pt").is_file() for member in members):
        lines.append("optimiser states beside the weights are left alone")
    if "split" in task:
        n = len(rows["validation"])
        lines.append(
            f"{wanted.data}: {n // 2:,} of {n:,} rows choose, the other {n - n // 2:,} only "
            "report; --test FILE keeps them all for choosing"
        )
    return lines
