"""Numbers and names as a reader wants to see them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

LABELS: Mapping[str, str] = {
    "loss": "loss",
    "accuracy": "accuracy",
    "f1": "F1",
    "f1_macro": "macro F1",
    "macro_f1": "macro F1",
    "matthews_correlation": "Matthews correlation",
    "brier": "Brier score",
    "soft_f1": "soft F1",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "exact_match": "exact match",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bleu": "BLEU",
    "chrf": "chrF",
}

RIVALS: Mapping[str, str] = {
    "finetune": "the best single checkpoint",
    "swa": "the uniform average (SWA)",
    "greedy": "the greedy soup",
}

MISSING = "–"


def metric_label(name: str) -> str:
    """The name of a metric in running text: "matthews_correlation" → "Matthews correlation"."""
    return LABELS.get(name, name.replace("_", " "))


def rival_label(method: str) -> str:
    """What a method is, for a sentence."""
    return RIVALS.get(method, method)


def number(value: float | None, digits: int = 4) -> str:
    """A metric or a loss, with `digits` decimals below 10; a dash if missing or NaN."""
    if value is None or math.isnan(value):
        return MISSING
    size = abs(value)
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.2f}"
    if size >= 0.001 or size == 0.0:
        return f"{value:.{digits}f}"
    return f"{value:.1e}"


def signed(value: float | None, digits: int = 4) -> str:
    """A difference with its sign, the minus as a minus and not as a hyphen."""
    text = number(value, digits)
    if value is not None and value > 0 and text != MISSING:
        return f"+{text}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """`[low, high]`, or nothing when either end is missing."""
    ends = (number(low, digits), number(high, digits))
    return "" if MISSING in ends else f"[{ends[0]}, {ends[1]}]"


def size(count: float) -> str:
    """Bytes in units of a thousand: `90.9 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float | None) -> str:
    """Seconds as "0.34 s", "42 s", "4 min 12 s", "3 h 05 min" or "2 d 03 h"."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def passes(epochs: float) -> str:
    """An amount of training: 1 epoch, 0.5 epochs."""
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'}"


def setting(value: object) -> str:
    """A hyper-parameter's value, short: 3.1623e-05 → "3.16e-05"."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.3g}"
    return str(value)


def heaviest(
    weights: Sequence[float], names: Sequence[str], most: int = 8, least: float = 0.005
) -> list[str]:
    """The members that carry weight, heaviest first: `["step-000123: 0.31", …]`.

    Args:
        weights: k fusion weights.
        names: k member names.
        most: How many to list; a last line counts the rest.
        least: Weights below it round to nothing and are counted with the rest.
    """
    ranked = sorted(zip(weights, names, strict=True), key=lambda pair: -pair[0])
    carrying = [(w, name) for w, name in ranked if w > 0]
    shown = [(w, name) for w, name in carrying if w >= least][:most]
    lines = [f"{name}: {w:.2f}" for w, name in shown]
    rest = len(carrying) - len(shown)
    if rest:
        left = sum(w for w, _ in carrying[len(shown) :])
        lines.append(f"and {rest} more: {left:.2f} together")
    return lines
