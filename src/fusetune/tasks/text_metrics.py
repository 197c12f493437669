"""Metrics of generated texts, by name: columns per example, a value from their sums.

A metric says of each example a few numbers, its columns; the value over a split, or over any
sample of it, is a function of the columns' sums alone. So corpus BLEU comes from summed
n-gram counts, never from a mean of BLEUs, and a bootstrap sample costs one matrix product.

.. [Lin2004] C.-Y. Lin. ROUGE: A Package for Automatic Evaluation of Summaries. 2004.
.. [Post2018] M. Post. A Call for Clarity in Reporting BLEU Scores. WMT 2018.
.. [Popovic2015] M. Popović. chrF: character n-gram F-score for automatic MT evaluation. 2015.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.errors import RecipeError
from fusetune.objective import Direction
from fusetune.tasks import squad
from fusetune.tasks.confusion import Floats, ratio
from fusetune.tasks.own_metric import OwnMetric

Texts = Sequence[str]
References = Sequence[Sequence[str]]
Measure = Callable[[Texts, References], NDArray[Any]]
Whole = Callable[[Texts, References], float]

NAMES = (
    "exact_match",
    "f1",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "bleu",
    "chrf",
    "accuracy",
)
SQUAD_RULES = (
    "by the rules of SQuAD: without case, punctuation and the words a, an, the, so that 3.5 "
    "and 35 are the same"
)
ABOUT = {
    "exact_match": f"the share of texts that are a reference, {SQUAD_RULES}",
    "f1": f"the mean F1 of words in common with the nearest reference, {SQUAD_RULES}",
    **{
        f"rouge{n}": f"the mean F-measure of {what} in common with the nearest reference; "
        "words are made of a to z and digits, so that other letters count for nothing"
        for n, what in (
            ("1", "words"),
            ("2", "pairs of words"),
            ("L", "the longest sequence"),
            ("Lsum", "the longest sequence of each line"),
        )
    },
    "bleu": "corpus BLEU, 0 to 100, as sacrebleu computes it by default",
    "chrf": "corpus chrF, 0 to 100, as sacrebleu computes it by default",
    "accuracy": "the share of right answers",
    "group_accuracy": "the mean of the groups' shares of right answers, each with one weight",
}
"""What each metric of texts is about; functions of users say it by their names."""

_DECIMAL = re.compile(r"\d[.,]\d")
_WORD = re.compile(r"[a-z0-9]")


def notes(metrics: Iterable[str], references: Sequence[Sequence[str]]) -> list[str]:
    """Where the references have what a metric's rules do not see.

    Args:
        metrics: Their names.
        references: Of each example.
    """
    names, found = list(metrics), []
    texts = [text for golds in references for text in golds]
    squad_names = [name for name in names if name in ("exact_match", "f1")]
    decimals = sum(bool(_DECIMAL.search(text)) for text in texts)
    if squad_names and decimals:
        found.append(
            f"{decimals:,} of {len(texts):,} references have numbers with a point or comma, "
            f"which {' and '.join(squad_names)} do not see: by the rules of SQuAD 3.5 is 35."
        )
    rouge = [name for name in names if name.startswith("rouge")]
    foreign = sum(any(c.isalpha() and not c.isascii() for c in text) for text in texts)
    silent = sum(bool(t.strip()) and not _WORD.search(t.lower()) for t in texts)
    if rouge and foreign:
        found.append(
            f"{foreign:,} of {len(texts):,} references have letters beyond a to z, which "
            f"{' and '.join(rouge)} do not see; {silent:,} have no word for them at all. "
            "chrf counts all letters."
        )
    unspaced = sum(bool(_UNSPACED.search(text)) for text in texts)
    if "f1" in names and unspaced:
        found.append(
            f"{unspaced:,} of {len(texts):,} references are in a script without spaces between "
            "words, where f1 takes a whole text for one word."
        )
    return found


_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]")
ORDERS = 4  # of BLEU's n-grams
CHARACTERS = 6  # of chrF's


@dataclass(frozen=True, slots=True)
class TextMetric:
    """One number for the generated texts of a split.

    Attributes:
        name: In results.
        columns: How many numbers it needs of each example.
        measure: n texts, and one or more references of each → `n x columns`.
        value: (sums of the columns `B x columns`, examples `B`) → `B` values.
        whole: Texts and references → value, for a metric that is no function of sums; its
            columns are NaN.
        direction: "maximize" or "minimize".
    """

    name: str
    columns: int
    measure: Measure
    value: Callable[[Floats, Floats], Floats]
    whole: Whole | None = None
    direction: Direction = "maximize"


def find(
    name: str,
    *,
    pattern: str | None = None,
    stemmer: bool = False,
    known: Sequence[str] = NAMES,
) -> TextMetric:
    """The metric of that name.

    Args:
        known: Those that the kind of task has.
        name: One of `NAMES`, or "module:function", a user's own (`own_metric.OwnMetric`).
        pattern: Of `accuracy`: a regular expression that finds the answer in a text.
        stemmer: Whether ROUGE compares stems (Porter) instead of words.

    Raises:
        RecipeError: If there is none, its package is not installed, or `accuracy` has no
            pattern; the message lists the known names.
    """
    if ":" in name:
        own = OwnMetric.load(name)
        return TextMetric(own.name, 1, own.measure, _mean, own.whole)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise RecipeError(
            f"There is no metric {name!r} of generated texts; known are {', '.join(known)}, or "
            "a function of your own as module:function.",
            hint=f"Did you mean {close[0]}?" if close else "",
        )
    if name in ("exact_match", "f1"):
        of_one = squad.exact_match if name == "exact_match" else squad.f1
        return TextMetric(name, 1, functools.partial(_each, of_one), _mean)
    if name.startswith("rouge"):
        return _rouge(name, stemmer)
    if name == "bleu":
        return _bleu()
    if name == "chrf":
        return _chrf()
    return TextMetric(name, 1, functools.partial(_each, _answer_matcher(pattern)), _mean)


def _each(
    of_one: Callable[[str, Sequence[str]], float], texts: Texts, references: References
) -> Floats:
    """One column: what `of_one` says of each example."""
    values = [of_one(text, golds) for text, golds in zip(texts, references, strict=True)]
    return np.array(values, dtype=np.float64).reshape(-1, 1)


def _mean(sums: Floats, examples: Floats) -> Floats:
    return ratio(sums[:, 0], examples)


def _rouge(name: str, stemmer: bool) -> TextMetric:
    """F-measure against the nearest reference, by the package rouge-score [Lin2004]."""
    library = _library("rouge_score.rouge_scorer", "rouge-score", name)
    scorer = library.RougeScorer([name], use_stemmer=stemmer)

    def of_one(text: str, references: Sequence[str]) -> float:
        return float(scorer.score_multi(list(references) or [""], text)[name].fmeasure)

    return TextMetric(name, 1, functools.partial(_each, of_one), _mean)


def _bleu() -> TextMetric:
    """Corpus BLEU, 0 to 100, as sacrebleu computes it by default [Post2018].

    Columns: lengths of text and nearest reference, right n-grams, all n-grams, n = 1 to 4.
    """
    scorer = _library("sacrebleu.metrics", "sacrebleu", "bleu").BLEU()

    def measure(texts: Texts, references: References) -> Floats:
        rows = []
        for text, golds in zip(texts, references, strict=True):
            found = scorer.corpus_score([text], [[gold] for gold in golds or [""]])
            rows.append([found.sys_len, found.ref_len, *found.counts, *found.totals])
        return np.array(rows, dtype=np.float64).reshape(-1, 2 + 2 * ORDERS)

    return TextMetric("bleu", 2 + 2 * ORDERS, measure, bleu)


def bleu(sums: Floats, examples: Floats) -> Floats:
    """BLEU of B samples, `B`, from summed counts, with exponential smoothing [Post2018].

    Args:
        sums: `B x 10`; the columns are those of the metric.
        examples: `B`; not used.
    """
    said, wanted = sums[:, 0], sums[:, 1]
    right, total = sums[:, 2 : 2 + ORDERS], sums[:, 2 + ORDERS :]
    precisions = 100.0 * ratio(right, total)
    halved = np.ones(len(sums))
    for n in range(ORDERS):  # the first order without a hit counts half a hit, the next 1/4 …
        without = (right[:, n] == 0.0) & (total[:, n] > 0.0)
        halved = np.where(without, 2.0 * halved, halved)
        smoothed = ratio(np.full(len(sums), 100.0), halved * total[:, n])
        precisions[:, n] = np.where(without, smoothed, precisions[:, n])
    brevity = np.exp(np.minimum(0.0, 1.0 - ratio(wanted, said)))
    possible = (right.sum(axis=1) > 0.0) & (total > 0.0).all(axis=1)
    means = np.exp(np.log(np.where(possible[:, None], precisions, 1.0)).mean(axis=1))
    return np.asarray(np.where(possible, brevity * means, 0.0))


def _chrf() -> TextMetric:
    """Corpus chrF (6 characters, β = 2), 0 to 100, by sacrebleu [Popovic2015].

    Columns: n-grams of text, of the nearest reference and in common, n = 1 to 6.
    """
    scorer = _library("sacrebleu.metrics", "sacrebleu", "chrf").CHRF()

    def measure(texts: Texts, references: References) -> Floats:
        rows = [
            scorer._extract_corpus_statistics([text], [[gold] for gold in golds or [""]])[0]
            for text, golds in zip(texts, references, strict=True)
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, 3 * CHARACTERS)

    return TextMetric("chrf", 3 * CHARACTERS, measure, functools.partial(chrf, beta=2.0))


def chrf(sums: Floats, examples: Floats, *, beta: float) -> Floats:
    """The chrF of B samples, `B`, from summed counts.

    Args:
        sums: `B x 18`; the columns are those of the metric.
        examples: `B`; not used.
        beta: How much more recall counts than precision.
    """
    said, wanted, common = (sums[:, i::3] for i in range(3))  # B x 6 each
    there = (said > 0.0) & (wanted > 0.0)
    orders = there.sum(axis=1).astype(np.float64)
    precision = ratio(np.where(there, ratio(common, said), 0.0).sum(axis=1), orders)
    recall = ratio(np.where(there, ratio(common, wanted), 0.0).sum(axis=1), orders)
    factor = beta**2
    return 100.0 * ratio((1.0 + factor) * precision * recall, factor * precision + recall)


def _answer_matcher(pattern: str | None) -> Callable[[str, Sequence[str]], float]:
    """Compares what a regular expression finds: its first group, or else the whole match."""
    if pattern is None:
        raise RecipeError(
            "The metric accuracy needs a regular expression that finds the answer in a text.",
            hint="Set task.options.answer_pattern, as '(-?[0-9]+)', or use exact_match.",
        )
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            f"task.options.answer_pattern is no regular expression: {error}; got {pattern!r}."
        ) from error

    def answer(text: str) -> str | None:
        found = compiled.search(text)
        if found is None:
            return None
        return (found[1] or "" if compiled.groups else found[0]).strip().casefold()

    def of_one(text: str, references: Sequence[str]) -> float:
        said = answer(text)
        wanted = {answer(gold) or gold.strip().casefold() for gold in references}
        return float(said is not None and said in wanted)

    return of_one


def _library(module: str, package: str, metric: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise RecipeError(
            f"The metric {metric} needs the package {package}, which is not installed.",
            hint="Install it with `pip install 'fusetune[generation]'`.",
        ) from None
