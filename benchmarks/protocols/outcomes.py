"""What every row said about every example: small enough to keep when the models are gone."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.landscapes import recorded
from benchmarks.protocols.records import Record
from fusetune.errors import RunError
from fusetune.evaluation.store import EvaluationStore
from fusetune.members import points
from fusetune.members.base_member import add_base
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.search import study_name, weights_of
from fusetune.pipeline.context import Context
from fusetune.pipeline.workbench import Workbench
from fusetune.run import RunFolder
from fusetune.tasks.task import Outputs, SplitName

SPLITS: tuple[SplitName, SplitName] = ("validation", "test")
FILE = "outcomes.npz"
ROUNDING = 2e-3
"""Of a metric, from outputs that were rounded to 16 bits."""


class Outcomes:
    """Outcomes per example, by row of a run and split; kept in one file.

    Args:
        folder: Of one seed, with a folder for each run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: dict[str, np.ndarray] = {}
        if (folder / FILE).is_file():
            with np.load(folder / FILE, allow_pickle=False) as saved:
                self._arrays = {name: saved[name] for name in saved.files}

    def has(self, run: str, row: str) -> bool:
        """Whether a row's outcomes on test were collected."""
        return f"{run}/{row}/test/loss" in self._arrays

    def get(self, run: str, row: str, split: SplitName = "test") -> Outputs:
        """The outcomes of a row.

        Raises:
            RunError: If they were not collected.
        """
        name = f"{run}/{row}/{split}"
        if f"{name}/loss" not in self._arrays:
            raise RunError(
                f"{self.folder / FILE} has no outcomes of {run}/{row} on {split}.",
                "Run the protocol's own settings with the method finetune first.",
            )
        return Outputs(self._arrays[f"{name}/loss"], self._arrays[f"{name}/predictions"])

    def collect(self, context: Context, run: str) -> None:
        """Take what the run's evaluation store has on all its rows, and write the file.

        What an earlier run of that name said is dropped, as long as there are members.

        Args:
            context: Of any run of the seed: it gives splits, device and precision.
            run: Name of the run's folder; without its members nothing new can be taken.
        """
        folder = self.folder / run
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))["methods"]
        if not (folder / "members").is_dir():
            return
        pool = MemberPool.open(folder / "members")
        base = RunFolder(folder).base_member
        if base.is_dir():
            pool = add_base(pool, base)
        others = {n: a for n, a in self._arrays.items() if not n.startswith(f"{run}/")}
        self._arrays = others
        for split in SPLITS:
            store = _store(context, folder, pool, split)
            for row in results:
                found = store.get(_point(results[row], folder))
                if found is not None and found.outputs is not None:
                    name = f"{run}/{row}/{split}"
                    self._arrays[f"{name}/loss"] = found.outputs.loss
                    self._arrays[f"{name}/predictions"] = found.outputs.predictions
        _save(self.folder / FILE, self._arrays)


def keep_landscape(context: Context, file: Path) -> bool:
    """Write the members' outputs on both splits; False where the members are gone.

    A member that was not evaluated on test is evaluated now. The arrays are those of the
    recorded landscapes; `weights` and `values` are what the search over w evaluated, with
    validation loss and metric. Outputs are rounded to 16 bits: they stand in for models.

    Args:
        context: Of the run.
        file: Where to write; one that knows this search, whole, is left alone, as is one of
            the same members that knows a longer one: rows may have been asked for that need
            none.
    """
    study = study_name(context.recipe.fuse.sampler)
    trials = [t for t in context.trials(study) if t.values is not None]
    weights = np.array([weights_of(trial).values for trial in trials])
    known: Mapping[str, np.ndarray] = {}
    if file.exists():
        with np.load(file) as saved:
            known = dict(saved)
        if np.array_equal(known["weights"], weights):
            return True
    if not context.folder.members.is_dir():
        return False
    pool = MemberPool.open(context.folder.members)
    bench = Workbench(pool, context, context.folder.evaluations)
    arrays: dict[str, np.ndarray] = {}
    for split in SPLITS:
        evaluator = bench.evaluator(split)
        found = [evaluator(FusionWeights.one_hot(i, len(pool))) for i in range(len(pool))]
        logits = [f.outputs.predictions for f in found if f.outputs is not None]
        arrays[f"{split}_logits"] = np.stack(logits).astype(np.float16)
        arrays[f"{split}_labels"] = context.task.splits[split].labels
    members = [f"{split}_logits" for split in SPLITS]
    same = known and all(np.array_equal(known[name], arrays[name]) for name in members)
    if same and len(known["weights"]) > len(weights):
        return True
    arrays["weights"] = weights
    arrays["values"] = np.array([t.values[:2] for t in trials])
    file.parent.mkdir(parents=True, exist_ok=True)
    _save(file, arrays)
    return True


def member_of(record: Record, file: Path) -> Outputs:
    """What the single member behind a record said about every test row.

    It is the one of the landscape with the record's values on validation and on test, so that
    a row can be compared with `finetune` where the run that made it is gone.

    Args:
        record: Of `finetune`.
        file: The landscape that `keep_landscape` wrote for its run.

    Raises:
        RunError: If no member has those values.
    """
    whole, n = recorded.load(file)
    name, far = record.primary, np.zeros(len(whole.logits))
    for rows, found in ((slice(n), record.validation), (slice(n, None), record.test)):
        values = whole.metric.batched(whole.logits[:, rows], whole.labels[rows])
        far = np.maximum(far, np.abs(values - found[name]["value"]))
    best = int(far.argmin())
    if far[best] > ROUNDING:
        raise RunError(
            f"No member of {file} has what the record of {record.method} says.",
            "Run the protocol's own settings with the method finetune again.",
        )
    test = recorded.Part(whole.logits[[best], n:], whole.labels[n:], whole.metric)
    return Outputs(test.losses(test.logits)[0].astype(np.float32), test.logits[0])


def _store(
    context: Context, folder: Path, pool: MemberPool, split: SplitName
) -> EvaluationStore:
    fingerprint = context.scorer(split).fingerprint
    return EvaluationStore(folder / "evaluations", f"{pool.fingerprint} {fingerprint}")


def _point(entry: Mapping[str, Any], folder: Path) -> points.Point:
    known = {k: v for k, v in entry.items() if v is not None}
    return points.from_json(known, folder / "methods" / "models")


def _save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, file)
