"""Exact match and F1 of short answers, by the rules of the SQuAD 2.0 evaluation script.

.. [Rajpurkar2018] P. Rajpurkar, R. Jia, P. Liang. Know What You Don't Know: Unanswerable
   Questions for SQuAD. ACL 2018. The rules are those of its `evaluate-v2.0.py`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer is one of the references, else 0.

    Args:
        prediction: "" says that there is no answer.
        references: Those that are empty once normalised are left out; with none left, the
            right answer is "".
    """
    said = normalised(prediction)
    return float(any(said == gold for gold in _golds(references)))


def f1(prediction: str, references: Sequence[str]) -> float:
    """F1 of the words in common with the nearest reference; arguments as in `exact_match`.

    Where either has no words, it is 1 if both have none, else 0.
    """
    said = normalised(prediction).split()
    return max(_f1(said, gold.split()) for gold in _golds(references))


def _golds(references: Sequence[str]) -> list[str]:
    return [gold for gold in map(normalised, references) if gold] or [""]


def _f1(said: Sequence[str], gold: Sequence[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    common = sum((Counter(said) & Counter(gold)).values())
    return 2.0 * common / (len(said) + len(gold))
