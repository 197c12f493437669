import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, Matern

from fusetune.optimization import process
from fusetune.optimization.process import Hyperparameters, Process

W = torch.distributions.Dirichlet(torch.full((5,), 0.5, dtype=torch.float64))
KERNELS = ["matern", "rbf"]


def points(n):
    torch.manual_seed(1)
    return W.sample((n,))


def sklearn_of(kernel, lengthscale, noise):
    shape = RBF(lengthscale) if kernel == "rbf" else Matern(lengthscale, nu=2.5)
    return GaussianProcessRegressor(shape, alpha=noise, optimizer=None)


@pytest.mark.parametrize("kernel", KERNELS)
def test_prediction_is_that_of_another_library(kernel):
    x, new = points(30), W.sample((20,))
    y = (3.0 * x.square().sum(1)).sin()
    h = Hyperparameters(lengthscale=0.7, noise=0.02, mean=0.3, scale=2.0)
    mean, variance = Process(x, y, h, kernel).predict(new)
    other = sklearn_of(kernel, 0.7, 0.01).fit(x.numpy(), y.numpy() - 0.3)
    expected, deviation = other.predict(new.numpy(), return_std=True)
    np.testing.assert_allclose(mean, 0.3 + expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(variance, 2.0 * deviation**2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_hyperparameters_of_a_known_process_are_found(kernel):
    x = points(120)
    K = process.correlation(process.distances(x, x), 0.5, kernel)
    L = torch.linalg.cholesky(4.0 * K + 0.04 * torch.eye(120, dtype=torch.float64))
    y = 10.0 + L @ torch.randn(120, 1, dtype=torch.float64)
    (h,) = process.fit_hyperparameters(x, y, kernel)
    assert 0.25 < h.lengthscale < 1.0
    assert 0.02 < h.noise < 0.08
    assert h.mean == pytest.approx(10.0, abs=3.0)
    assert 1.0 < h.scale < 16.0
    assert h.factor == 0.0


def test_no_other_lengthscale_makes_the_data_more_probable():
    x = points(60)
    y = (x.square().sum(1, keepdim=True) * 3.0).sin()
    (h,) = process.fit_hyperparameters(x, y)

    def log_likelihood(lengthscale, scale):
        K = process.correlation(process.distances(x, x), lengthscale, "matern")
        C = scale * K + h.noise * torch.eye(60, dtype=torch.float64)
        mean = torch.full((60,), h.mean, dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(mean, C)
        prior = -0.5 * (np.log(lengthscale) / process.LENGTHSCALE_PRIOR[1]) ** 2
        return normal.log_prob(y[:, 0]).item() + prior

    best = log_likelihood(h.lengthscale, h.scale)
    for factor in (1.5, 1 / 1.5):
        assert log_likelihood(h.lengthscale * factor, h.scale) < best + 0.05
        assert log_likelihood(h.lengthscale, h.scale * factor) < best + 0.05


def test_the_look_at_every_other_lengthscale_misses_nothing(monkeypatch):
    x = points(50)
    Y = torch.stack([x[:, 0], (8 * x[:, 1]).sin(), torch.rand(50, dtype=torch.float64)], dim=1)
    quick = process.fit_hyperparameters(x, Y)
    monkeypatch.setattr(process, "COARSE", 1)
    assert process.fit_hyperparameters(x, Y) == quick


def test_objectives_are_fitted_each_for_itself():
    x = points(40)
    Y = torch.stack([x[:, 0], (8 * x[:, 1]).sin()], dim=1)
    together = process.fit_hyperparameters(x, Y)
    alone = [process.fit_hyperparameters(x, Y[:, j : j + 1])[0] for j in range(2)]
    for a, b in zip(together, alone, strict=True):
        assert (a.lengthscale, a.noise / a.scale) == pytest.approx(
            (b.lengthscale, b.noise / b.scale)
        )
        assert a.scale == pytest.approx(b.scale, rel=1e-6)


def test_prediction_follows_smooth_data():
    x, new = points(60), W.sample((50,))
    f = lambda w: torch.stack([(w * w).sum(-1), w[:, 0] - w[:, 1] * w[:, 2]], dim=1)  # noqa: E731
    for j, fitted in enumerate(process.fit(x, f(x))):
        mean, variance = fitted.predict(new)
        assert (mean - f(new)[:, j]).abs().max() < 0.05
        assert (variance > 0).all()


def test_a_prior_that_is_right_up_to_a_factor_is_used_with_that_factor():
    rough = lambda w: (40.0 * w).sin().sum(-1)  # noqa: E731
    x, new = points(40), W.sample((200,))
    y = (2.0 + 0.6 * rough(x) + 0.1 * x[:, 0])[:, None]
    expected = 2.0 + 0.6 * rough(new) + 0.1 * new[:, 0]
    (plain,) = process.fit(x, y)
    (fitted,) = process.fit(x, y, prior=rough(x)[:, None])
    assert fitted.hyperparameters.factor == pytest.approx(0.6, abs=0.03)
    error = (fitted.predict(new, rough(new))[0] - expected).abs().mean()
    assert error < 0.1 * (plain.predict(new)[0] - expected).abs().mean()


def test_a_prior_that_says_nothing_is_given_a_small_factor():
    x = points(60)
    y = 3.0 * x[:, :1] + x[:, 1:2].square()
    (h,) = process.fit_hyperparameters(x, y, prior=torch.randn(60, 1, dtype=torch.float64))
    assert abs(h.factor) < 0.2


@pytest.mark.parametrize("n", [2, 5])
def test_constant_and_few_values_do_not_break_it(n):
    x = points(n)
    Y = torch.stack([torch.full((n,), 0.7, dtype=torch.float64), x[:, 0]], dim=1)
    for prior in (None, torch.zeros_like(Y), Y):
        fitted = process.fit(x, Y, prior=prior)
        more = None if prior is None else torch.full((9,), prior[0, 0], dtype=torch.float64)
        mean, variance = fitted[0].predict(points(9), more)
        assert torch.isfinite(variance).all()
        torch.testing.assert_close(mean, torch.full((9,), 0.7, dtype=torch.float64))


def test_equal_points_do_not_break_it():
    x = points(3).repeat(4, 1)
    (fitted,) = process.fit(x, x[:, :1])
    assert torch.isfinite(fitted.predict(points(4))[0]).all()
