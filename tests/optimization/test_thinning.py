import numpy as np
from numpy.testing import assert_array_equal

from fusetune.objective import LOSS
from fusetune.optimization import fusion, hyperparameters, thinning
from fusetune.optimization.hyperparameter_sampler import HyperparameterSampler
from fusetune.optimization.thinning import informative


def test_few_rows_are_all_kept():
    assert_array_equal(informative(np.array([3.0, 1.0, 2.0]), 3), [0, 1, 2])


def test_the_best_by_half_and_the_newest():
    value = np.array([9.0, 1.0, 8.0, 2.0, 3.0, 0.0, 4.0, 1.0])
    assert_array_equal(informative(value, 4), [0, 2, 6, 7])
    assert_array_equal(informative(value, 4, always=np.array([5])), [0, 5, 6, 7])
    assert_array_equal(informative(value, 2, always=np.array([1, 3, 5])), [1, 3, 5])


def test_a_long_search_finds_what_a_whole_model_would(monkeypatch):
    """The surrogate of a thinned history still proposes near the optimum."""
    from benchmarks.load import SPACE, search_trials

    monkeypatch.setattr(thinning, "MOST", 40)
    monkeypatch.setattr(hyperparameters, "MOST", 40)
    sampler = HyperparameterSampler(SPACE, LOSS, seed=0)
    found = sampler.propose(120, search_trials(120))
    assert found.origin == "model"
    assert abs(np.log10(found.params["learning_rate"]) - (3 * 0.4 - 6)) < 0.6
    assert abs(found.params["weight_decay"] - 0.04) < 0.02


def test_the_front_of_a_long_fusion_is_never_dropped(monkeypatch):
    monkeypatch.setattr(fusion, "MOST_FUSION", 16)
    rng = np.random.default_rng(0)
    W = np.vstack([np.eye(3), rng.dirichlet(np.ones(3), 60)])
    Y = -np.column_stack([((W - 0.3) ** 2).sum(1), ((W - 0.5) ** 2).sum(1)])
    w = fusion.suggest(W, Y, seed=0)
    assert w.sum() == 1.0 or abs(w.sum() - 1.0) < 1e-12
    assert -((w - 0.3) ** 2).sum() > np.median(Y[:, 0])
