"""Which tasks, splits and settings a named protocol has.

Protocol a: the papers' splits (dev halved; SST-2: 1,000 training rows held out, dev as test).
Protocol b, less noisy: MRPC, STS-B and SST-2 with the whole dev split as validation and the
labelled test split as test; RTE and CoLA, whose test has no labels, with training rows held
out as validation and the whole dev split as test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusetune.errors import RecipeError, closest
from fusetune.recipe import Recipe
from fusetune.recipe_file import find, load

PROTOCOLS = ("a", "b")
SCALES = ("quick", "full")
SEEDS = (41, 42, 43, 44)
PRECISIONS = ("bfloat16", "float32")

METHODS = (
    "finetune",
    "swa",
    "ema",
    "greedy",
    "learned",
    "model_stock",
    "bo",
    "mobo",
    "oracle",
)
"""Rows on one trajectory; the procedures (`grid`, `hpbo`, `bomf`, …) are asked for by name."""

TRIED = ("finetune", "swa", "mobo")
"""Rows of a try, unless others are asked for."""

REFERENCE_EVALUATIONS = {"quick": 24, "full": 90}
"""Subsets that the oracle evaluates on test; the test splits are large."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One task.

    Attributes:
        rows: Training, validation and test rows of the official splits; 0 without labels.
        held_out: Training rows that become validation in protocol b; 0 where test has labels.
        tokens: Mean tokens of a row, cut at `max_length`.
        max_length: Of the quick scale.
        epochs: Of a quick training, batch 16.
        trial_epochs: Of a trial of its search.
        rate: Learning rate of the quick scale, and the middle of its grid.
    """

    rows: tuple[int, int, int]
    held_out: int
    tokens: int
    max_length: int
    epochs: float
    trial_epochs: float
    rate: float


TASKS: Mapping[str, Setting] = {
    "rte": Setting((2490, 277, 0), 500, 55, 96, 5.0, 2.0, 1e-4),
    "mrpc": Setting((3668, 408, 1725), 0, 53, 96, 3.5, 1.0, 1e-4),
    "cola": Setting((8551, 1043, 0), 1500, 11, 64, 5.0, 1.0, 1e-4),
    "stsb": Setting((5749, 1500, 1379), 0, 31, 96, 2.5, 1.0, 1e-4),
    "sst2": Setting((67349, 872, 1821), 0, 19, 64, 0.4, 0.15, 5e-5),
}

MEMBERS = {"quick": 10, "full": 15}
EVALUATIONS = {"quick": 40, "full": 90}  # the full scale: k starting points and 5 k further

TRIES: Mapping[str, Sequence[str]] = {
    "linear": ["train.arguments.lr_scheduler_type=linear"],
    "constant": ["train.arguments.lr_scheduler_type=constant"],
    "window-25": ["train.collect_from=0.25"],
    "window-75": ["train.collect_from=0.75"],
    "members-5": ["train.members=5"],
    "members-15": ["train.members=15", "fuse.evaluations=90"],
    "members-30": ["train.members=30", "fuse.evaluations=90"],
    "rate-double": [],
    "rate-half": [],
    "rate-quarter": [],
    "adam": [],
    "adam-double": [],
    "two-trajectories": ["train.trajectories=2"],
    "base-member": ["fuse.base_member=true"],
    "evaluations-20": ["fuse.evaluations=20"],
    "evaluations-90": ["fuse.evaluations=90"],
    "search-full": ["search.variant=full"],
    "trials-8": ["search.trials=8"],
    "best-trials": [
        "train.trajectories={count: 2, source: trials}",
        "train.members=20",
        "fuse.evaluations=60",
    ],
    "longer": [],
    "cyclic": [],
    "brier": [],
    "soft-f1": [],
}
"""What is tried beside the protocol's settings; those without keys depend on the task, as
`longer`: the search's time is spent on the training."""

GONE = ("judge-promise", "search-best")
"""Tries of settings that version 0.2.0 no longer has; their records stay what was measured."""

RATES = {
    "rate-double": 2.0,
    "rate-half": 0.5,
    "rate-quarter": 0.25,
    "adam": 1.0,
    "adam-double": 2.0,
}
"""Factors of the learning rate."""

PAPERS = ("train.arguments.adam_beta2=0.98", "train.arguments.adam_epsilon=1e-6")
ADAM = {"adam": PAPERS, "adam-double": PAPERS}
"""With AdamW as the papers have it, and as the recipes for RoBERTa do."""

OF_SEARCH = {
    **dict.fromkeys(("search-full", "trials-8"), "bomf"),
    "best-trials": "bilevel",  # whose trials are full trainings
}
"""Tries of the search, and the row of each."""

LIGHT = 0.6  # seconds of a light trial, as a share of a full one's


def recipe(
    task: str,
    protocol: str,
    data: Path,
    *,
    scale: str = "quick",
    attempt: str = "",
    precision: str = PRECISIONS[0],
) -> tuple[Recipe, list[str]]:
    """The ready MiniLM recipe with a protocol's settings, and those as overrides.

    Args:
        task: A key of `TASKS`.
        protocol: "a" or "b".
        data: The folder with one folder per task.
        scale: "quick", for two processor cores, or "full", the recipe's own.
        attempt: A key of `TRIES`, or none.
        precision: Of the quick scale, one of `PRECISIONS`. Named, not left to the machine: the
            rows of a task are compared, wherever each was made.

    Raises:
        RecipeError: If a name is not known, or the try does not suit the task.
    """
    for name, known in ((task, TASKS), (protocol, PROTOCOLS), (scale, SCALES)):
        if name not in known:
            raise RecipeError(f"Unknown {name!r}{closest(name, known)}; {', '.join(known)}.")
    changes = [
        f"task.data={data / task}",
        f"fuse.oracle_evaluations={REFERENCE_EVALUATIONS[scale]}",
    ]
    if protocol == "b":
        held_out = TASKS[task].held_out
        changes.append(
            f"task.split={{hold_out: {held_out}}}" if held_out else "task.split=none"
        )
    if scale == "quick":
        changes += _quick(TASKS[task], precision)
    source = find(f"{task}-minilm")
    if attempt:
        changes += _attempt(attempt, load(source, changes))
    return load(source, changes), changes


def rows(attempt: str) -> tuple[str, ...]:
    """The rows of a try, or of the protocol's own settings, unless others are asked for."""
    if not attempt:
        return METHODS
    return (OF_SEARCH[attempt],) if attempt in OF_SEARCH else TRIED


def without_place(overrides: Sequence[str]) -> tuple[str, ...]:
    """What of a recipe's overrides decides a result: not where the data lie."""
    return tuple(text for text in overrides if not text.startswith("task.data="))


def precision_of(overrides: Sequence[str]) -> str:
    """What a recipe's overrides name as its precision; "" where it is the machine's."""
    key = "model.precision="
    return next((text.removeprefix(key) for text in overrides if text.startswith(key)), "")


def precision_option(name: str) -> str:
    """The option that asks for a precision; "" for the usual one."""
    return "" if name == PRECISIONS[0] else f" --precision {name}"


def _quick(setting: Setting, precision: str) -> list[str]:
    rates = [setting.rate * factor for factor in (0.5, 1.0, 2.0)]
    return [
        f"model.max_length={setting.max_length}",
        f"model.precision={precision}",
        "train.arguments.per_device_train_batch_size=16",
        f"train.epochs={setting.epochs:g}",
        f"train.arguments.learning_rate={setting.rate:g}",
        f"train.members={MEMBERS['quick']}",
        f"fuse.evaluations={EVALUATIONS['quick']}",
        f"compare.learning_rates=[{', '.join(f'{rate:g}' for rate in rates)}]",
        "search.trials=4",
        f"search.epochs={setting.trial_epochs:g}",
        f"search.space.learning_rate={{low: {rates[0]:g}, high: {2 * rates[2]:g}, log: true}}",
        "search.space.per_device_train_batch_size={choices: [16]}",
    ]


def _attempt(name: str, base: Recipe) -> Sequence[str]:
    if name in GONE:
        raise RecipeError(f"The try {name} needs version 0.1.0: its setting is gone since.")
    if name not in TRIES:
        raise RecipeError(f"Unknown try {name!r}{closest(name, TRIES)}; {', '.join(TRIES)}.")
    rate = float(base.train.arguments["learning_rate"])
    if name in RATES:
        return [f"train.arguments.learning_rate={RATES[name] * rate:g}", *ADAM.get(name, ())]
    if name == "longer":
        search, epochs = base.search, base.train.epochs
        light = LIGHT * search.trials * (search.epochs or epochs)
        return [f"train.epochs={epochs + light:g}"]
    if name == "cyclic":  # as the row swa_cyclic: each member is taken where a cycle ends
        train = base.train
        cycles = f"{{cycles: {train.members_each}, start: {train.collect_from:g}}}"
        return [
            "train.arguments.lr_scheduler_type=cyclic",
            f"train.arguments.lr_scheduler_kwargs={cycles}",
        ]
    if name in ("brier", "soft-f1"):
        if base.task.kind != "sequence-classification":
            raise RecipeError(f"The try {name} is for classification; {base.task.kind} is not.")
        metrics = ", ".join([*base.task.metrics, name.replace("-", "_")])
        return [f"task.metrics=[{metrics}]"]
    return TRIES[name]
