"""A search over the weights of any members, candidate by candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from fusetune.errors import (
    EvaluateError,
    FusetuneError,
    MemberError,
    NoResultError,
    RunError,
)
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.store import EvaluationStore
from fusetune.executors.serial import SerialExecutor
from fusetune.files.record import mapping, read_record
from fusetune.library.function import Evaluate, FunctionScore
from fusetune.library.models import build_model
from fusetune.library.objectives import as_budget, as_method, as_objectives
from fusetune.library.pool import BaseMember, as_pool
from fusetune.library.result import Candidate, Fused, best_of
from fusetune.members.average import plan
from fusetune.members.claim import claimed
from fusetune.members.discover import Paths
from fusetune.members.disk import write_json
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods import find as find_method
from fusetune.methods.choices import with_choices, worse_than_member
from fusetune.methods.method import FusionResult
from fusetune.methods.search import study_name, weights_of
from fusetune.objective import Objective, better
from fusetune.optimization.study import HOPELESS, Loop, open_storage
from fusetune.optimization.telling import REASON

RUN = "fusion-run.json"

Rule = Literal["consensus", "best", "posterior", "knee"]


@dataclass(frozen=True, slots=True)
class Step:
    """One finished candidate of a search.

    Attributes:
        number: From 1.
        budget: How many there will be.
        candidate: Its w and values; None if it failed.
        best: The best so far in the primary objective; None until one has not failed.
        reason: Why it failed.
    """

    number: int
    budget: int
    candidate: Candidate | None
    best: Candidate | None
    reason: str = ""


class Fusion:
    """A search over the weights of members that can be followed candidate by candidate.

        for step in Fusion(pool, evaluate=evaluate, objectives=["f1:maximize"]):
            print(step.number, step.candidate)

    Iterating to the end, or `finish`, does the whole search. Its arguments are those of `fuse`.
    """

    def __init__(
        self,
        pool: MemberPool | Paths,
        *,
        evaluate: Evaluate,
        objectives: Sequence[str | Objective],
        direction: str | Sequence[str] | None = None,
        primary: str | None = None,
        model_init: Callable[[], nn.Module] | None = None,
        budget: int | None = None,
        method: str = "mobo",
        choose: Rule = "consensus",
        seed: int = 0,
        device: str | torch.device | None = None,
        folder: str | Path | None = None,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
        base_member: BaseMember = None,
    ) -> None:
        self.objectives = as_objectives(objectives, direction, primary)
        self.folder = Path(folder) if folder else None
        consents = (allow_pickle, trust_remote_code)
        self.pool = as_pool(pool, model_init, self.folder, base_member, *consents)
        self.budget = as_budget(budget, len(self.pool))
        self.choose, self.seed = choose, seed
        self.method = as_method(method)
        if not callable(evaluate):
            raise EvaluateError(f"evaluate must be a function of a model; got {evaluate!r}.")
        if len({member.sha256 for member in self.pool.members}) == 1:
            raise MemberError(f"All {len(self.pool)} members are the same.")
        model = build_model(self.pool, model_init, device, trust_remote_code)
        where = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.average = plan(self.pool, model, device=where)
        store = EvaluationStore(None, self.pool.fingerprint)
        score = FunctionScore(evaluate, self.objectives)
        self.evaluator = Evaluator(
            self.average, self.average.model, score, self.objectives, store
        )

    def __iter__(self) -> Iterator[Step]:
        """Search, and give each candidate as soon as it has been evaluated.

        Those that an interrupted call left in `folder` are not evaluated, nor given, again.
        """
        with self._claimed():
            for number in range(len(self._trials) + 1, self.budget + 1):
                self._search(number)
                yield self._step(number)

    def finish(self, callbacks: Sequence[Callable[[Step], object]] = ()) -> Fused:
        """Search to the end and choose.

        Args:
            callbacks: Each is called with every `Step`.

        Raises:
            FusetuneError: See `fuse`.
        """
        for step in self:
            for callback in callbacks:
                callback(step)
        with self._claimed():
            return self._result(self._search(self.budget))

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Hold the folder, if there is one; what it knows already is not evaluated again."""
        if self.folder is None:
            yield
            return
        with claimed(self.folder, "The folder"):
            self._check_folder(self.folder)
            for trial in _complete(self._trials):
                seconds = float(trial.user_attrs["seconds"])
                known = Evaluation(self._values(trial), None, seconds)
                self.evaluator.store.put(weights_of(trial), known)
            yield

    @cached_property
    def _loop(self) -> Loop:
        if self.folder is None:
            return Loop.in_memory()
        return Loop(open_storage(self.folder / "trials.journal"), SerialExecutor())

    def _check_folder(self, folder: Path) -> None:
        """A folder belongs to one search: these members, objectives, method and seed.

        Raises:
            RunError: If it belongs to another.
        """
        mine = {
            "members": self.pool.fingerprint,
            "objectives": [[o.name, o.direction] for o in self.objectives],
            "method": self.method,
            "seed": self.seed,
        }
        path = folder / RUN
        found = read_record(path, mapping)
        if found is None:
            write_json(path, mine)
            return
        if different := [key for key in mine if found.get(key) != mine[key]]:
            raise RunError(
                f"{folder} holds a fusion with other {', '.join(different)}.",
                "Give another folder.",
            )

    def _search(self, budget: int) -> FusionResult | None:
        """Bring the search to `budget` trials; None while all of them have failed."""
        try:
            return find_method(self.method)(
                self.pool, self.evaluator, budget=budget, seed=self.seed, loop=self._loop
            )
        except NoResultError:
            if budget >= min(HOPELESS, self.budget):
                raise
            return None

    @property
    def _trials(self) -> list[FrozenTrial]:
        """Those that are finished."""
        study = self._loop.find(study_name(self.method))
        found = study.get_trials(deepcopy=False) if study is not None else []
        return [trial for trial in found if trial.state.is_finished()]

    def _values(self, trial: FrozenTrial) -> dict[str, float]:
        return dict(zip((o.name for o in self.objectives), trial.values, strict=True))

    def _candidates(self) -> list[Candidate]:
        """Every distinct w without failures, in order."""
        found = {
            weights_of(t): Candidate(weights_of(t), self._values(t), self.method)
            for t in _complete(self._trials)
        }
        return list(found.values())

    def _step(self, number: int) -> Step:
        trials = self._trials
        last, candidates = trials[-1], self._candidates()
        best = best_of(candidates, self.objectives, self.method) if candidates else None
        if last.state is not TrialState.COMPLETE:
            return Step(number, self.budget, None, best, str(last.user_attrs.get(REASON, "")))
        done = Candidate(weights_of(last), self._values(last), self.method)
        return Step(number, self.budget, done, best)

    def _result(self, found: FusionResult | None) -> Fused:
        assert found is not None  # _search has raised if nothing was found in the whole budget
        candidates = self._candidates()
        failed = len(self._trials) - len(_complete(self._trials))
        notes = [f"{failed} of {len(self._trials)} candidates failed."] if failed else []
        methods = _plain(candidates, self.objectives, self.pool.trained)
        try:
            found = with_choices(found, self._trials, self.evaluator)
        except FusetuneError:
            raise
        except Exception as error:  # evaluate failed at the average of the best
            notes.append(f"The rule consensus was left out: {type(error).__name__}: {error}")
        rows = found.rows(self.method)
        methods |= {name: Candidate(r.weights, r.values, name) for name, r in rows.items()}
        known = {c.weights for c in candidates}
        candidates += [c for c in methods.values() if c.weights not in known]
        chosen, note = self._choose(methods)
        notes += [note] if note else []
        seconds = max(result.seconds for result in rows.values())
        return Fused(
            candidates=tuple(candidates),
            methods=methods,
            chosen=chosen,
            objectives=self.objectives,
            pool=self.pool,
            average=self.average,
            seconds=seconds,
            notes=tuple(notes),
        )

    def _choose(self, methods: Mapping[str, Candidate]) -> tuple[str, str]:
        """The row of the rule, or that of "best" where the rule did worse than a member."""
        row = self.method if self.choose == "best" else f"{self.method}.{self.choose}"
        if row in methods and "finetune" in methods:
            values, best = methods[row].values, methods["finetune"].values
            if not better(best, values, self.objectives):
                return row, ""
            return self.method, worse_than_member(row, values, best, self.objectives)
        return (row, "") if row in methods else (self.method, "")


def _plain(
    candidates: Sequence[Candidate], objectives: Sequence[Objective], trained: Sequence[int]
) -> dict[str, Candidate]:
    """`finetune` and `swa` of the checkpoints, as far as the search has evaluated them."""
    k = len(candidates[0].weights)
    ends = {FusionWeights.one_hot(i, k) for i in trained}
    single = [c for c in candidates if c.weights in ends]
    uniform = [c for c in candidates if c.weights == FusionWeights.uniform(k, trained)]
    found = {"finetune": single, "swa": uniform}
    return {name: best_of(own, objectives, name) for name, own in found.items() if own}


def _complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state is TrialState.COMPLETE]
