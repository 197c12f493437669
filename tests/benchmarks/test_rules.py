"""Rules for the choice on landscapes: how they are read, split, tried and shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rules
from benchmarks.landscapes import recorded, tried
from benchmarks.protocols import page
from fusetune.optimization import selection

K, N, TEST = 4, 120, 80


def landscape(file: Path, classes: int, seed: int = 0) -> Path:
    """Members that see a class, or a number, with noise of their own."""
    rng = np.random.default_rng(seed)
    rows = N + TEST
    if classes == 1:
        labels = rng.uniform(0.0, 5.0, size=rows)
        outputs = labels + rng.normal(size=(K, rows))
        outputs = outputs[..., None]
    else:
        labels = rng.integers(0, classes, size=rows)
        outputs = np.eye(classes)[labels] + rng.normal(size=(K, rows, classes))
    np.savez(
        file,
        validation_logits=outputs[:, :N].astype(np.float16),
        test_logits=outputs[:, N:].astype(np.float16),
        validation_labels=labels[:N],
        test_labels=labels[N:],
    )
    return file


def test_the_name_of_a_landscape_gives_its_metric(tmp_path: Path) -> None:
    for name, classes, metric in (
        ("b-cola-41-fixed", 2, "matthews_correlation"),
        ("mrpc", 2, "f1"),
        ("b-rte-42-bomf", 2, "accuracy"),
        ("b-stsb-41-fixed", 1, "pearson"),
    ):
        part, n = recorded.load(landscape(tmp_path / f"{name}.npz", classes))
        assert (part.metric.name, n) == (metric, N)
        assert part.regression is (classes == 1)
    validation, test = recorded.resplit(part, n, 0)
    assert len(validation.labels) == N
    assert sorted([*validation.labels, *test.labels]) == sorted(part.labels)
    squared = validation.losses(validation.logits)
    np.testing.assert_allclose(squared, (validation.logits[..., 0] - validation.labels) ** 2)


@pytest.mark.parametrize("classes", [1, 2])
def test_every_rule_chooses_a_point_of_the_simplex(tmp_path: Path, classes: int) -> None:
    name = "b-stsb-41-fixed" if classes == 1 else "b-cola-41-fixed"
    whole, n = recorded.load(landscape(tmp_path / f"{name}.npz", classes))
    validation, _ = recorded.resplit(whole, n, 0)
    seen = tried.Seen(recorded.random_candidates(K, 30, 0), validation, 0)
    chosen = tried.all_rules(seen) | tried.guarded(seen)
    for rule, w in chosen.items():
        assert w.min() >= 0.0, rule
        assert w.sum() == pytest.approx(1.0), rule
    # Equal members and few rows: the default goes as far as it may.
    towards = f"consensus, {selection.TOWARDS_UNIFORM[0]:g} towards the uniform average"
    np.testing.assert_allclose(chosen[tried.DEFAULT], chosen[towards])


def test_landscapes_are_tried_and_shown_by_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("b-rte-41-fixed", "b-rte-42-fixed", "cola")):
        landscape(tmp_path / f"{name}.npz", 2, seed)
    results = tmp_path / "results"
    monkeypatch.setattr("benchmarks.protocols.records.FOLDER", results)
    options = ["--evaluations", "20", "--splits", "2", "--store", "--json"]
    monkeypatch.setattr("sys.argv", ["rules", "--data", str(tmp_path), *options])
    rules.main()
    assert set(json.loads(capsys.readouterr().out)) == {"gain_default", "gain_best"}
    (stored,) = page.rules(results)
    assert stored["landscapes"] == {"rte": 2, "cola, recorded": 1}
    text = page.page([], rules=[stored])
    assert "landscapes by task: RTE 2, cola, recorded 1" in text
    assert f"| **{tried.DEFAULT}** |" in text
    assert "| finetune | +0.00 | +0.00 ± 0.00 | +0.00 ± 0.00 |" in text
