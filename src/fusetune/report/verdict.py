"""What the run gained, in plain words, and whether the noise could explain it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fusetune.objective import Objective
from fusetune.report.content import REFERENCES, objective_named, point
from fusetune.report.wording import metric_label, number, rival_label, signed

Kind = Literal["gain", "noise", "none", "worse", "open"]

BADGES: Mapping[Kind, str] = {
    "gain": "Clear gain",
    "noise": "Inside the noise",
    "none": "No gain",
    "worse": "Worse",
    "open": "Not tested",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of the chosen method against its rivals.

    Attributes:
        kind: "gain" (interval of the difference above 0), "noise" (better, interval
            includes 0), "none" (not better), "worse" (interval below 0) or "open" (no
            interval).
        headline: One sentence against the best single checkpoint.
        details: Further sentences, one per other rival, and what to keep in mind.
    """

    kind: Kind
    headline: str
    details: tuple[str, ...] = ()

    @property
    def badge(self) -> str:
        """The kind in two or three words."""
        return BADGES[self.kind]

    def __str__(self) -> str:
        return " ".join((self.headline, *self.details))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The chosen method against one rival, turned so that above 0 is better.

    Attributes:
        rival: Name of the other method.
        split: "test", or "validation" when there is no test split.
        gain: Improvement of the primary metric.
        low: Lower end of the paired 95 % interval of the gain; None if not computed.
        high: Upper end.
        p_value: Of the paired test; None if not computed.
    """

    rival: str
    split: str
    gain: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    @property
    def kind(self) -> Kind:
        """See `Verdict.kind`."""
        if self.low is None or self.high is None:
            return "open"
        if self.low > 0:
            return "gain"
        if self.high < 0:
            return "worse"
        return "noise" if self.gain > 0 else "none"

    @property
    def badge(self) -> str:
        """The kind in two or three words."""
        return BADGES[self.kind]


def comparisons(
    results: Mapping[str, Any], objectives: tuple[Objective, ...]
) -> tuple[Comparison, ...]:
    """The chosen method against every other candidate that was measured, in order.

    Args:
        results: The content of results.json.
        objectives: Name and direction of each metric.
    """
    chosen, methods = results["chosen"], results["methods"]
    primary = objective_named(results["primary"], objectives)
    split = "test" if point(methods[chosen], "test", primary.name) else "validation"
    ours = point(methods[chosen], split, primary.name).get("value")
    found = []
    for rival, entry in methods.items():
        theirs = point(entry, split, primary.name).get("value")
        if rival == chosen or rival in REFERENCES or not (_known(ours) and _known(theirs)):
            continue
        paired = (results.get("comparison") or {}).get(rival) if split == "test" else None
        found.append(_turned(rival, split, primary, float(ours) - float(theirs), paired))  # type: ignore[arg-type]
    return tuple(found)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _turned(
    rival: str,
    split: str,
    primary: Objective,
    difference: float,
    paired: Mapping[str, float | None] | None,
) -> Comparison:
    """The comparison with the sign of `primary`, so that a gain is positive."""
    if not paired or not (_known(paired.get("low")) and _known(paired.get("high"))):
        return Comparison(rival, split, primary.sign * difference)
    ends = sorted((primary.sign * float(paired["low"]), primary.sign * float(paired["high"])))  # type: ignore[arg-type]
    exact = paired.get("difference")
    gain = primary.sign * (difference if exact is None else exact)
    return Comparison(rival, split, gain, ends[0], ends[1], paired.get("p_value"))


def verdict(results: Mapping[str, Any], objectives: tuple[Objective, ...]) -> Verdict:
    """What was gained, honest about noise.

    Args:
        results: The content of results.json; with "comparison", the paired intervals
            decide, without it the verdict is left open.
        objectives: Name and direction of each metric.
    """
    chosen = results["chosen"]
    primary = metric_label(results["primary"])
    rivals = {c.rival: c for c in comparisons(results, objectives)}
    ordered = [rivals[name] for name in ("finetune", "swa") if name in rivals]
    rules = _other_rules(results)
    if chosen == "finetune":
        headline = (
            "No gain: on validation, no fusion beat the best single checkpoint, "
            "so that checkpoint is the model."
        )
        return Verdict("none", headline, tuple(_against(c) for c in ordered))
    if not ordered:
        headline = f"{_reached(results, primary)}. There is no rival to compare."
        return Verdict("open", headline, rules)
    first, *others = ordered
    headline = f"{_opening(first)}: on {first.split}, {_sentence(results, primary, first)}"
    details = [*(_against(c) for c in others), *rules]
    if first.split == "validation":
        details.append(
            "There is no test split, and the weights were chosen on validation, "
            "so these figures flatter the chosen method."
        )
    elif first.kind == "open":
        details.append(
            "No paired interval was computed, so how much of it is noise is not known."
        )
    return Verdict(first.kind, headline, tuple(details))


def _other_rules(results: Mapping[str, Any]) -> tuple[str, ...]:
    """What other rules for the choice would have given; nothing if there are none.

    Rows `mobo` and `mobo.RULE` choose from the same evaluations.
    """
    search = results["chosen"].partition(".")[0]
    others = {
        name: entry
        for name, entry in results["methods"].items()
        if name != results["chosen"] and name.partition(".")[0] == search
    }
    ours = results["methods"][results["chosen"]]
    split = "test" if point(ours, "test", results["primary"]) else "validation"
    given = [
        f"{name} {number(value)}"
        for name, entry in others.items()
        if _known(value := point(entry, split, results["primary"]).get("value"))
    ]
    if not given:
        return ()
    primary = metric_label(results["primary"])
    return (
        f"Other rules for the choice, on the same evaluations, would have given {split} "
        f"{primary}: {', '.join(given)}.",
    )


def _opening(against: Comparison) -> str:
    if against.kind == "open":
        return "Better" if against.gain > 0 else "No gain"
    return {
        "gain": "A clear gain",
        "noise": "Inside the noise",
        "none": "No gain",
        "worse": "Worse than before",
    }[against.kind]


def _reached(results: Mapping[str, Any], primary: str) -> str:
    entry = results["methods"][results["chosen"]]
    for split in ("test", "validation"):
        value = point(entry, split, results["primary"]).get("value")
        if _known(value):
            return f"{results['chosen']} reaches {split} {primary} {number(value)}"
    return f"{results['chosen']} was chosen"


def _sentence(results: Mapping[str, Any], primary: str, against: Comparison) -> str:
    """`mobo reaches F1 0.9124, 0.0170 better than the best single checkpoint (…).`"""
    entry = results["methods"][results["chosen"]]
    value = point(entry, against.split, results["primary"]).get("value")
    start = f"{results['chosen']} reaches {primary} {number(value)}, {_distance(against)}"
    if against.kind == "open":
        return f"{start}."
    ends = f"{signed(against.low)} to {signed(against.high)}"
    if against.kind == "noise":
        return f"{start}, but the 95 % interval of the difference, {ends}, includes 0."
    if against.kind == "none":
        return f"{start}, inside the noise (95 % interval of the difference {ends})."
    return f"{start} (95 % interval of the difference {ends})."


def _distance(against: Comparison) -> str:
    rival = rival_label(against.rival)
    if against.gain == 0:
        return f"exactly as {rival}"
    return (
        f"{number(abs(against.gain))} {'better' if against.gain > 0 else 'worse'} than {rival}"
    )


def _against(against: Comparison) -> str:
    """One sentence on a further rival: `Against the uniform average (SWA): +0.0101, …`"""
    reading = {
        "gain": "a clear gain",
        "noise": "inside the noise",
        "none": "no gain, inside the noise",
        "worse": "clearly worse",
        "open": "better" if against.gain > 0 else "no gain",
    }[against.kind]
    ends = "" if against.low is None else f" [{signed(against.low)}, {signed(against.high)}]"
    return f"Against {rival_label(against.rival)}: {signed(against.gain)}{ends}, {reading}."
