"""The members in memory and evaluators of them: what fusing and reporting share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from fusetune.errors import RunError
from fusetune.evaluation import candidates
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator, evaluate
from fusetune.evaluation.lockstep import Lockstep
from fusetune.evaluation.store import EvaluationStore
from fusetune.executors.group import current
from fusetune.members.adapter import AdapterMember
from fusetune.members.average import Average, build, for_files
from fusetune.members.averaging_plan import AveragingPlan, Form, choose
from fusetune.members.base_member import add_base, state_of, write_base
from fusetune.members.fully_sharded import OwnRows
from fusetune.members.manifest import read_manifest
from fusetune.members.points import Point
from fusetune.members.pool import MemberPool
from fusetune.models.load import resolve
from fusetune.pipeline.context import Context
from fusetune.pipeline.existing import open_recorded
from fusetune.pipeline.remote import FusionWork
from fusetune.pipeline.together import memory_limit, spread, spreads, together
from fusetune.tasks.task import SplitName

_along: list[Workbench] = []
"""Of a group's other processes: what the last `_open_along` made."""


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
        if self.context.recipe.model.device_map is not None and self.pool.adapters is None:
            form = "streaming"  # into the parameters where they lie
        limit = None if current() is None else memory_limit(self.context)
        return choose(self.pool, device=self.context.device, form=form, limit=limit)

    @cached_property
    def average(self) -> Average:
        """The members, ready to be averaged into one model; in every process of a group."""
        members = [(str(m.path.resolve()), m.sha256) for m in self.pool.members]
        return together(self.context, self.average_here, _open_along, members, self.plan)

    def average_here(self) -> Average:
        """The same, in this process alone: of a model that is spread, its rows."""
        device = self.context.device
        if self.pool.adapters is not None:
            model = self.pool.adapters.base.model
        elif spreads(self.context.recipe):
            model = spread(self.context, self._plain_model).eval()
            return build(self.plan, OwnRows(self.pool, model), model, device)
        else:
            model = self._plain_model()
        model.eval()
        return build(self.plan, self.pool, model, device, apart=self.apart)

    @property
    def writer(self) -> Average:
        """What whole models are written with."""
        whole = not isinstance(self.average.pool, OwnRows)
        return self.average if whole else for_files(self.pool)

    def _plain_model(self) -> nn.Module:
        """A model of the members' kind; of the recipe's where they have no configuration.

        It has the configuration and the precision with which the fused model will be saved.
        """
        last, dtype = self.pool.last, self.pool.dtype
        if not last.config:
            return self.context.base(spread=True, dtype=dtype)
        section = self.context.recipe.model
        source = resolve(
            str(last.loadable),
            trust_remote_code=section.trust_remote_code,
            device_map=section.device_map,
        )
        return source.build(self.context.task.build, spread=True, dtype=dtype)

    @property
    def apart(self) -> bool:
        """Whether the factors of adapters are averaged apart."""
        return self.context.recipe.fuse.adapters == "factors"

    def evaluator(self, split: SplitName) -> Evaluator:
        """The values of θ̄(w) on a split; nothing is evaluated that the store knows."""
        scorer = self.context.scorer(split)
        way = " apart" if self.apart else ""
        model = self.average.model
        per_pass = 1
        alone = current() is None and self.context.recipe.model.device_map is None
        if alone:
            wanted = self.context.recipe.fuse.candidates_per_pass
            per_pass, why = candidates.plan(wanted, model, scorer)
            if why:
                self.context.note(f"fuse.candidates_per_pass: {why}.")
        shared, own = self.context.shared, self.evaluations
        others = shared.evaluations(own) if shared is not None and own is not None else ()
        objectives = self.context.task.objectives
        known_as = f"{self.pool.fingerprint} {scorer.fingerprint}{way}"
        names, rows = [o.name for o in objectives], len(scorer.encoded)
        store = EvaluationStore(own, known_as, others, names, rows)
        elsewhere = None
        remote = self.context.recipe.executor.kind != "serial"
        if remote and self.evaluations is not None:  # the run's members, not a trial's
            elsewhere = FusionWork.of(self.context, self.pool, split)
        here = (self.average, model, scorer, objectives, store, per_pass, elsewhere)
        group = current()
        if group is None:
            return Evaluator(*here)

        def ask(point: Point) -> Evaluation:
            work = functools.partial(self.evaluate_here, split, point)
            return together(self.context, work, _evaluate_along, split, point)

        return Evaluator(*here, together=ask)

    def evaluate_here(self, split: SplitName, point: Point) -> Evaluation:
        """This process's share of an evaluation by a group; all have the result."""
        group, average = current(), self.average
        assert group is not None
        if isinstance(average.pool, OwnRows):
            point = average.pool.point(point)
        score = Lockstep(self.context.scorer(split), group)
        return evaluate(average, average.model, score, point)


def _open_along(
    context: Context, members: Sequence[tuple[str, str]], plan: AveragingPlan
) -> None:
    """Of a group's other processes: make what the first one's workbench makes."""
    _along.clear()  # give its memory back first
    paths, digests = zip(*members, strict=True)
    pool = open_recorded(
        {"paths": paths, "sha256": digests},
        functools.partial(context.base, spread=True),
        allow_pickle=context.recipe.model.allow_pickle,
        copies=context.folder.converted,
    )
    bench = Workbench(pool, context, None)
    bench.plan = plan
    bench.average = bench.average_here()
    _along.append(bench)


def _evaluate_along(context: Context, split: SplitName, point: Point) -> None:
    """Of a group's other processes: their share of an evaluation."""
    _along[0].evaluate_here(split, point)


def open_pool(context: Context, folder: Path) -> MemberPool:
    """The members in a folder; adapters are laid on the recipe's model."""
    return MemberPool.open(folder, base=functools.partial(context.base, spread=True))


def open_members(context: Context) -> Workbench:
    """The run's own members.

    Raises:
        RunError: If they are gone, or not the ones that the training recorded.
        MemberError: If they are checkpoints from elsewhere, and one is gone or has changed.
    """
    folder = context.folder
    record = folder.recorded("train") or {}
    if "paths" in record:
        pool = open_recorded(
            record,
            functools.partial(context.base, spread=True),
            allow_pickle=context.recipe.model.allow_pickle,
            copies=folder.converted,
        )
        return Workbench(with_base(context, pool), context, folder.evaluations)
    recorded = record.get("members", [])
    if not folder.members.is_dir():
        raise RunError(
            f"{folder.members} is gone, and with it the members that the training collected.",
            "Bring it back, or run `fusetune train --force` to collect them again.",
        )
    pool = open_pool(context, folder.members)
    if list(pool.names) != recorded:
        raise RunError(
            f"{folder.members} holds {', '.join(pool.names)}, but the training collected "
            f"{', '.join(recorded)}.",
            "Run `fusetune train --force` to collect them again.",
        )
    return Workbench(with_base(context, pool), context, folder.evaluations)


def with_base(context: Context, pool: MemberPool) -> MemberPool:
    """The pool, with the pretrained model if the recipe wants it as a member."""
    if not context.recipe.fuse.base_member:
        return pool
    folder = context.folder.base_member
    if read_manifest(folder) is None:
        first = pool.members[0]
        if isinstance(first, AdapterMember) and not first.whole:
            write_base(folder, pool, {})  # an adapter without factors says it all
        else:
            model, drawn = context.pretrained()
            names = () if pool.adapters is not None else tuple(pool.tensors)
            write_base(folder, pool, state_of(model, names), drawn)
    return add_base(pool, folder)
