from __future__ import annotations

import numpy as np
import pytest

from fusetune.evaluation.assembly import Assembly
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.store import EvaluationStore
from fusetune.evaluation.token_ensemble import TokenEnsemble
from fusetune.members.weights import FusionWeights
from fusetune.tasks.task import Outputs


def members(k: int = 4, tokens: int = 300, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.log(random.uniform(1e-4, 1.0, (k, tokens))).astype(np.float32)


def test_the_loss_is_that_of_mixed_probabilities() -> None:
    rows = members()
    ensemble = TokenEnsemble(list(rows))
    w = np.random.default_rng(1).dirichlet(np.ones(4), size=5)
    wanted = -np.log(w @ np.exp(rows.astype(np.float64))).mean(axis=1)
    found = ensemble.predict(w)
    assert set(found) == {"loss"}
    np.testing.assert_allclose(found["loss"], wanted, rtol=1e-6)
    alone = ensemble.predict(np.eye(4))["loss"]
    np.testing.assert_allclose(alone, -rows.mean(axis=1), rtol=1e-6)
    assert len(ensemble.predict(np.empty((0, 4)))["loss"]) == 0


def test_probabilities_too_small_for_a_number_and_broken_members() -> None:
    rows = members()
    rows[:, 0] = -500.0  # exp(-500) is 0 in every precision
    rows[2, 5] = np.nan
    ensemble = TokenEnsemble([rows[0], rows[1], rows[2], None])
    found = ensemble.predict(np.array([[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0], [0.9, 0, 0, 0.1]]))
    both = np.logaddexp(rows[0].astype(float), rows[1].astype(float)) - np.log(2)
    assert found["loss"][0] == pytest.approx(-both.mean(), rel=1e-6)
    assert np.isnan(found["loss"][1:]).all()
    w = ensemble.minimiser()
    assert w is not None
    assert w[2] == w[3] == 0.0
    assert TokenEnsemble([rows[2], None]).minimiser() is None


def test_the_minimiser_beats_every_mixture() -> None:
    ensemble = TokenEnsemble(list(members(seed=2)))
    w = ensemble.minimiser()
    assert w is not None
    assert w.sum() == pytest.approx(1.0)
    random = np.random.default_rng(3).dirichlet(np.full(4, 0.7), size=3000)
    lowest = ensemble.predict(w[None])["loss"][0]
    assert lowest <= ensemble.predict(random)["loss"].min() + 1e-9


def test_texts_and_token_probabilities_survive_batches_and_the_disk(tmp_path) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(0)
    log_probs = tuple(random.random(n, dtype=np.float32) for n in (3, 1, 2, 4))
    whole = Outputs(
        random.random(4, dtype=np.float32),
        random.random((4, 2), dtype=np.float32),
        ("a", "é\n", "", "d"),
        log_probs,
    )
    assembly = Assembly(4)
    for rows in (np.array([3, 1]), np.array([0, 2])):
        assembly.add(rows, whole.at(rows))
    point = FusionWeights((0.25, 0.75))
    EvaluationStore(tmp_path, "x").put(point, Evaluation({"loss": 1.0}, assembly.whole(), 0.1))
    kept = EvaluationStore(tmp_path, "x").get(point)
    assert kept is not None
    assert kept.outputs is not None
    assert kept.outputs.texts == whole.texts
    assert np.array_equal(kept.outputs.loss, whole.loss)
    assert kept.outputs.log_probs is not None
    for a, b in zip(kept.outputs.log_probs, log_probs, strict=True):
        assert np.array_equal(a, b)
    plain = Outputs(whole.loss, whole.predictions)
    EvaluationStore(tmp_path, "y").put(point, Evaluation({"loss": 1.0}, plain, 0.1))
    again = EvaluationStore(tmp_path, "y").get(point)
    assert again is not None
    assert again.outputs is not None
    assert again.outputs.texts is None
    assert again.outputs.log_probs is None
