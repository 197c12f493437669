import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from fusetune.optimization import improvement, pareto

rng = np.random.default_rng(2)


def tensor(*shape, low=0.0, high=1.0):
    return torch.as_tensor(rng.uniform(low, high, size=shape))


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_expected_growth_of_the_hypervolume_is_what_sampling_gives(m):
    Y, mean, deviation = tensor(6, m), tensor(3, m), tensor(3, m, low=0.05, high=0.4)
    found = improvement.HypervolumeImprovement(Y)(mean, deviation)
    origin = np.zeros(m)
    before = pareto.hypervolume(Y.numpy(), origin)
    for i in range(3):
        draws = rng.normal(mean[i], deviation[i], size=(250, m))
        gains = [pareto.hypervolume(np.vstack([Y, d]), origin) - before for d in draws]
        error = np.std(gains) / np.sqrt(len(gains))
        assert found[i] == pytest.approx(np.mean(gains), abs=4.0 * error)


def test_without_a_point_above_the_reference_all_volume_is_gain():
    Y = torch.full((4, 2), -0.5, dtype=torch.float64)
    mean, deviation = tensor(5, 2), tensor(5, 2, low=0.1)
    zero = torch.zeros((), dtype=torch.float64)
    alone = improvement.expected_improvement(mean, deviation, zero).prod(dim=1)
    found = improvement.HypervolumeImprovement(Y)(mean, deviation)
    torch.testing.assert_close(found, alone)


def test_blocks_of_points_change_nothing(monkeypatch):
    gain = improvement.HypervolumeImprovement(tensor(20, 3))
    mean, deviation = tensor(30, 3), tensor(30, 3, low=0.1)
    whole = gain(mean, deviation)
    monkeypatch.setattr(improvement, "CELLS", 100)
    torch.testing.assert_close(gain(mean, deviation), whole)


def test_expected_improvement_is_the_integral_that_defines_it():
    mean, deviation, threshold = 0.2, 0.5, 0.4
    found = improvement.expected_improvement(
        *(torch.tensor(x, dtype=torch.float64) for x in (mean, deviation, threshold))
    )
    normal = scipy.stats.norm(mean, deviation)
    integral, _ = scipy.integrate.quad(normal.sf, threshold, np.inf)
    assert found.item() == pytest.approx(integral, rel=1e-7)


def test_a_large_front_of_three_objectives_is_thinned_and_stays_an_upper_bound(monkeypatch):
    Y = tensor(60, 3)
    Y = Y / Y.norm(dim=1, keepdim=True)
    mean, deviation = tensor(40, 3), tensor(40, 3, low=0.05, high=0.2)
    thinned = improvement.HypervolumeImprovement(Y)(mean, deviation)
    monkeypatch.setattr(improvement, "MOST", 1000)
    whole = improvement.HypervolumeImprovement(Y)(mean, deviation)
    assert (thinned >= whole - 1e-12).all()  # what is left out dominates nothing any more
    assert np.corrcoef(thinned, whole)[0, 1] > 0.9
