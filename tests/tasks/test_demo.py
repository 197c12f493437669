from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fusetune.tasks import demo, find
from fusetune.tasks.data import read


def test_the_seed_decides_everything() -> None:
    assert demo.entailment(3, train=50) == demo.entailment(3, train=50)
    assert demo.entailment(3, train=50) != demo.entailment(4, train=50)


def test_no_pair_stands_twice() -> None:
    splits = demo.entailment(0)
    pairs = [(r["premise"], r["hypothesis"]) for rows in splits.values() for r in rows]
    assert [len(rows) for rows in splits.values()] == [2400, 500, 1000]
    assert len(set(pairs)) == len(pairs)


def test_labels_are_balanced_and_noisy_as_said() -> None:
    clean, noisy = (demo.entailment(5, noise=noise)["train"] for noise in (0.0, 0.06))
    assert Counter(row["label"] for row in clean)["entailment"] == pytest.approx(1200, abs=100)
    # The noise is drawn between the pairs, and drawn also when it is 0: same pairs.
    flipped = sum(a["label"] != b["label"] for a, b in zip(clean, noisy, strict=True))
    assert [r["premise"] for r in clean] == [r["premise"] for r in noisy]
    assert flipped == pytest.approx(0.06 * 2400, abs=45)


def test_no_single_cue_gives_the_label_away() -> None:
    rows = demo.entailment(1, train=4000, noise=0.0)["train"]

    def accuracy(guess: dict[object, str], key: object) -> float:
        return sum(guess[key(r)] == r["label"] for r in rows) / len(rows)  # type: ignore[operator]

    def best(key: object) -> float:
        seen: dict[object, Counter[str]] = {}
        for row in rows:
            seen.setdefault(key(row), Counter())[row["label"]] += 1  # type: ignore[operator]
        return accuracy({k: c.most_common(1)[0][0] for k, c in seen.items()}, key)

    def overlap(row: dict[str, str]) -> int:
        premise, hypothesis = (set(row[k].lower().split()) for k in ("premise", "hypothesis"))
        return len(hypothesis - premise)

    assert best(overlap) < 0.7
    assert best(lambda row: "not" in row["hypothesis"].lower()) < 0.7


def test_sentences_are_short_and_well_formed() -> None:
    rows = demo.entailment(2)["train"]
    for row in rows:
        for text in (row["premise"], row["hypothesis"]):
            assert text[0].isupper()
            assert text.endswith(".")
            assert "  " not in text
    assert sum(len(row["premise"].split()) for row in rows) / len(rows) < 12


def test_written_files_are_a_data_set(tmp_path: Path) -> None:
    demo.write(tmp_path / "demo", seed=1)
    rows = read(str(tmp_path / "demo"))
    expected = demo.entailment(1)
    assert {name: split.to_list() for name, split in rows.items()} == expected
    task = find("sequence-classification")(
        "demo",
        str(tmp_path / "demo"),
        text=["premise", "hypothesis"],
        label="label",
        metrics=["accuracy"],
    )
    assert task.notes == ()
    assert len(task.splits["test"]) == 1000
