"""The members in memory and evaluators of them: what fusing and reporting share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fusetune.errors import RunError
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.average import Average, build
from fusetune.members.averaging_plan import AveragingPlan, Form, choose
from fusetune.members.pool import MemberPool
from fusetune.models.load import resolve
from fusetune.pipeline.context import Context
from fusetune.tasks.task import SplitName


@dataclass
class Workbench:
    """The members in memory, one model to put averages into, and evaluators of it.

    Attributes:
        pool: The members.
        context: Task, device and scorers.
        evaluations: Folder of the evaluation store; None keeps evaluations in memory.
    """

    pool: MemberPool
    context: Context
    evaluations: Path | None

    @cached_property
    def plan(self) -> AveragingPlan:
        """Where the members will be kept: the recipe's form, else the fastest that fits."""
        wanted = self.context.recipe.fuse.averaging
        form: Form | None = None if wanted == "auto" or self.apart else wanted
        return choose(self.pool, device=self.context.device, form=form)

    @cached_property
    def average(self) -> Average:
        """The members, ready to be averaged into one model."""
        if self.pool.adapters is not None:
            model = self.pool.adapters.base.model
        else:
            source = resolve(str(self.pool.members[0].path))
            model = source.build(self.context.task.build)
        model.eval()
        return build(self.plan, self.pool, model, self.context.device, apart=self.apart)

    @property
    def apart(self) -> bool:
        """Whether the factors of adapters are averaged apart."""
        return self.context.recipe.fuse.adapters == "factors"

    def evaluator(self, split: SplitName) -> Evaluator:
        """The values of θ̄(w) on a split; nothing is evaluated that the store knows."""
        scorer: Scorer = self.context.scorer(split)
        way = " apart" if self.apart else ""
        store = EvaluationStore(
            self.evaluations, f"{self.pool.fingerprint} {scorer.fingerprint}{way}"
        )
        return Evaluator(
            self.average, self.average.model, scorer, self.context.task.objectives, store
        )


def open_pool(context: Context, folder: Path) -> MemberPool:
    """The members in a folder; adapters are laid on the recipe's model."""
    return MemberPool.open(folder, base=context.base)


def open_members(context: Context) -> Workbench:
    """The run's own members.

    Raises:
        RunError: If they are not the ones that the training recorded.
    """
    folder = context.folder
    recorded = (folder.done("train") or {}).get("members", [])
    pool = open_pool(context, folder.members)
    if list(pool.names) != recorded:
        raise RunError(
            f"{folder.members} holds {', '.join(pool.names)}, but the training collected "
            f"{', '.join(recorded)}.",
            "Run `fusetune train --force` to collect them again.",
        )
    return Workbench(pool, context, folder.evaluations)
