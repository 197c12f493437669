"""What a fusion by the library found: candidates, their front, models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from fusetune.errors import NoResultError
from fusetune.library.page import record_of
from fusetune.members.average import Average
from fusetune.members.companions import home
from fusetune.members.export import export, export_chain
from fusetune.members.member import MODULES
from fusetune.members.pool import MemberPool
from fusetune.members.saved_layout import is_chain
from fusetune.members.weights import FusionWeights
from fusetune.objective import Objective, to_maximise
from fusetune.optimization import selection
from fusetune.optimization.constraint import Constraint
from fusetune.optimization.pareto import front
from fusetune.report import html


@dataclass(frozen=True, slots=True)
class Candidate:
    """An evaluated w.

    Attributes:
        weights: k fusion weights, in the order of the members.
        values: What `evaluate` gave, by objective.
        method: Which row asked for it: the search, or a rule of choice.
    """

    weights: FusionWeights
    values: Mapping[str, float]
    method: str = ""


@dataclass(frozen=True)
class Fused:
    """The result of `fuse`.

    Attributes:
        candidates: Every distinct w that was evaluated, in order.
        methods: Row of the report ("finetune", "swa", "mobo", "mobo.consensus", …) → what
            it chose.
        chosen: The row whose w is the result.
        objectives: In the house's order, the primary one second if there are several.
        pool: The members.
        seconds: Wall time of all evaluations and suggestions.
        notes: What a reader should know.
    """

    candidates: tuple[Candidate, ...]
    methods: Mapping[str, Candidate]
    chosen: str
    objectives: tuple[Objective, ...]
    pool: MemberPool
    average: Average = field(repr=False)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> FusionWeights:
        """The chosen w."""
        return self.methods[self.chosen].weights

    @property
    def values(self) -> Mapping[str, float]:
        """What `evaluate` gave for it."""
        return self.methods[self.chosen].values

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The candidates that no other beats in every objective, in order of evaluation."""
        rows = front(to_maximise([c.values for c in self.candidates], self.objectives))
        return tuple(self.candidates[i] for i in sorted(rows))

    def pick(self, constraint: str) -> Candidate:
        """The candidate that keeps bounds and is best in one objective.

        Args:
            constraint: Bounds and a goal, as "loss <= 0.5, max f1".

        Raises:
            RecipeError: If it cannot be read, or names an unknown objective.
            NoResultError: If no candidate keeps the bounds; the nearest ones are shown.
        """
        wanted = Constraint.parse(
            constraint, where="pick", names=[o.name for o in self.objectives]
        )
        wanted.check(self.objectives, where="pick")
        values = to_maximise([c.values for c in self.candidates], self.objectives)
        row = selection.constrained(values, self.objectives, wanted)
        if row is None:
            near = selection.nearest(values, self.objectives, wanted)
            shown = "; ".join(_text(self.candidates[i].values) for i in near)
            raise NoResultError(
                f"No candidate keeps {', '.join(map(str, wanted.bounds))}.",
                f"Nearest are: {shown}.",
            )
        return self.candidates[row]

    def model(self, candidate: Candidate | None = None) -> nn.Module:
        """The shared model with the parameters of a candidate, by default the chosen one.

        The next call, and a further evaluation, change the same model in place.
        """
        self.average.into_model(self._weights(candidate))
        return self.average.model

    def save(
        self,
        folder: str | Path,
        candidate: Candidate | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Path:
        """Write the model of a candidate, by default the chosen one.

        Args:
            folder: Made, or replaced as a whole if an earlier export made it.
            candidate: Of `front`, `candidates` or `pick`.
            tokenizer: Saved beside the model; by default the members' files are copied.

        Returns:
            The folder, with model.safetensors, the members' configuration and fusion.json; a
            model of sentence-transformers is written as it writes itself.

        Raises:
            StageError: If the disk is too small, or the folder holds something else.
        """
        chosen = candidate or self.methods[self.chosen]
        extra: dict[str, Any] = {"method": chosen.method, "validation": dict(chosen.values)}
        if is_chain(self.average.model) and not (home(self.pool.last) / MODULES).is_file():
            return export_chain(self.average, chosen.weights, self.pool, Path(folder), extra)
        return export(
            self.average, chosen.weights, self.pool, folder, tokenizer=tokenizer, extra=extra
        )

    def report(self, path: str | Path, *, title: str = "Fusion") -> Path:
        """Write one self-contained HTML page with the front, the weights and all candidates.

        Args:
            path: The file; its folder must exist.
            title: What was fused.
        """
        html.write(record_of(self, title), Path(path))
        return Path(path)

    def _weights(self, candidate: Candidate | None) -> FusionWeights:
        return self.weights if candidate is None else candidate.weights


def _text(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


def best_of(
    candidates: Sequence[Candidate], objectives: Sequence[Objective], method: str
) -> Candidate:
    """The best in the primary objective, under a row's name."""
    values = to_maximise([c.values for c in candidates], objectives)
    found = candidates[selection.best(values, objectives)]
    return Candidate(found.weights, found.values, method)
