"""Metrics of lm-evaluation-harness: their names in a recipe, their shares of each document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from fusetune.errors import RecipeError
from fusetune.tasks.confusion import Floats, ratio
from fusetune.tasks.text_metrics import TextMetric

PREFIX = "lm_eval:"

PUBLIC = (
    "aclue", "agieval", "ai2", "anli", "arc", "bbh", "bigbench", "blimp", "boolq", "c4", "cb",
    "ceval", "cmmlu", "commonsense", "copa", "coqa", "drop", "glue", "gpqa", "gsm", "gsm8k",
    "hellaswag", "hendrycks", "humaneval", "ifeval", "lambada", "leaderboard", "logiqa",
    "math", "mathqa", "mbpp", "medmcqa", "medqa", "mgsm", "minerva", "mmlu", "mmmu", "musr",
    "nq", "openbookqa", "paloma", "piqa", "pubmedqa", "race", "sciq", "siqa", "social",
    "squad", "squadv2", "super", "superglue", "swag", "toxigen", "triviaqa", "truthfulqa",
    "wikitext", "winograd", "winogrande", "wsc", "xcopa", "xnli", "xstorycloze", "xwinograd",
)  # fmt: skip
"""First words of the names of public test benchmarks."""


AGGREGATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "mean": lambda mean: mean,
    "perplexity": lambda mean: np.exp(-mean),
    "weighted_perplexity": lambda mean: np.exp(-mean),
    "bits_per_byte": lambda mean: -mean / np.log(2.0),
}
"""How the harness makes a metric of its documents' mean, by the name of its function."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric of one task or group.

    Attributes:
        name: As in results: TASK/METRIC, or TASK/METRIC/FILTER.
        task: Of a task or group.
        metric: Of the harness.
        filter: Name of a filter; the task's first one if None.
    """

    name: str
    task: str
    metric: str
    filter: str | None

    @classmethod
    def parse(cls, text: str) -> Measure:
        """Read `lm_eval:TASK/METRIC` or `lm_eval:TASK/METRIC/FILTER`.

        Raises:
            RecipeError: If it is something else.
        """
        name = text.removeprefix(PREFIX)
        parts = name.split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise RecipeError(
                f"A metric of the kind lm-eval is lm_eval:TASK/METRIC; got {text!r}.",
                "Example: lm_eval:arc_easy/acc_norm.",
            )
        return cls(name, parts[0], parts[1], parts[2] if len(parts) == 3 else None)

    def text_metric(self, tasks: Iterable[Any]) -> TextMetric:
        """The metric with its two columns; documents of a group count alike.

        Raises:
            RecipeError: If a task lacks it, or it is no function of a mean.
        """
        ways = set()
        for task in tasks:
            known = task.aggregation()
            if self.metric not in known:
                raise RecipeError(
                    f"The task {task.task_name} has no metric {self.metric}; it has "
                    f"{', '.join(known)}."
                )
            filters = [f.name for f in task._filters]
            if self.filter is not None and self.filter not in filters:
                raise RecipeError(
                    f"The task {task.task_name} has no filter {self.filter}; it has "
                    f"{', '.join(filters)}."
                )
            function = known[self.metric]
            ways.add((function.__name__, bool(task.higher_is_better()[self.metric])))
        (way, higher), *others = sorted(ways)
        if way not in AGGREGATIONS or others:
            raise RecipeError(
                f"{self.name} is aggregated by {way}, which cannot be split into documents; "
                f"known are {', '.join(AGGREGATIONS)}."
            )
        finish = AGGREGATIONS[way]

        def value(sums: Floats, examples: Floats) -> Floats:
            return finish(ratio(sums[:, 0], sums[:, 1]))

        direction: Any = "maximize" if higher else "minimize"
        return TextMetric(self.name, 2, _never, value, direction=direction)

    def value(self, metrics: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
        """A document's value and its weight in the mean.

        Args:
            metrics: Metric → filter → what the harness computed of it.
        """
        by_filter = metrics[self.metric]
        found = by_filter[self.filter] if self.filter else next(iter(by_filter.values()))
        if isinstance(found, tuple):  # a log-likelihood and what it is divided by
            return float(found[0]), float(found[1])
        return float(found), 1.0


def is_public(name: str) -> bool:
    """Whether a task's name is that of a public test benchmark."""
    return name.lower().replace("-", "_").partition("_")[0] in PUBLIC


def _never(texts: Sequence[str], references: Sequence[Sequence[str]]) -> NoReturn:
    raise AssertionError("the harness measures, not this")
