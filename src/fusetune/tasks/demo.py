"""The embedded data set: sentence pairs for entailment, made by a grammar.

Does the premise entail the hypothesis? Five families of pairs, each with its own reasoning,
half of them entailed. Difficulty is controlled: single words tell about three pairs in four
(an added adjective, a negation), the others need both sentences, and a few (roles swapped,
quantifiers) their order. A share of the labels is flipped, so that a long training learns
noise and checkpoints differ.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusetune.tasks.data import SPLITS
from fusetune.tasks.demo_grammar import FAMILIES, Pair
from fusetune.tasks.demo_words import sentence
from fusetune.tasks.task import SplitName

ENTAILED, NOT_ENTAILED = "entailment", "not_entailment"
NOISE = 0.06
Row = dict[str, str]


def entailment(
    seed: int,
    *,
    train: int = 2400,
    validation: int = 500,
    test: int = 1000,
    noise: float = NOISE,
) -> dict[SplitName, list[Row]]:
    """Rows with premise, hypothesis and label; no pair stands twice, in any split.

    Args:
        seed: Decides everything.
        train: Number of training rows.
        validation: Number of validation rows.
        test: Number of test rows.
        noise: Share of rows, in every split, whose label is flipped.

    Returns:
        For each split, rows whose label is "entailment" or "not_entailment".
    """
    rng = random.Random(seed)
    pairs = _distinct_pairs(rng)
    return {
        split: [_row(rng, next(pairs), noise) for _ in range(count)]
        for split, count in zip(SPLITS, (train, validation, test), strict=True)
    }


def write(folder: Path, seed: int, **options: Any) -> None:
    """Writes `train.jsonl`, `validation.jsonl` and `test.jsonl`, for `data: folder`.

    `options` go to `entailment`: the numbers of rows, the noise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in entailment(seed, **options).items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def _row(rng: random.Random, pair: Pair, noise: float) -> Row:
    premise, hypothesis, entailed = pair
    flipped = rng.random() < noise
    label = ENTAILED if entailed != flipped else NOT_ENTAILED
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


def _distinct_pairs(rng: random.Random) -> Iterator[Pair]:
    """Endless pairs, entailed or not with equal chance, each family with its share."""
    seen: set[tuple[str, str]] = set()
    families, shares = zip(*FAMILIES, strict=True)
    while True:
        family = rng.choices(families, shares)[0]
        wanted = rng.random() < 0.5
        premise, hypothesis, entailed = family(rng)
        while entailed != wanted or premise == hypothesis or (premise, hypothesis) in seen:
            premise, hypothesis, entailed = family(rng)
        seen.add((premise, hypothesis))
        yield sentence(premise), sentence(hypothesis), entailed
