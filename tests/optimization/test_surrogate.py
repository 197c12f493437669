import pytest
import torch
from gpytorch.mlls import ExactMarginalLogLikelihood

from fusetune.optimization import surrogate

X = torch.distributions.Dirichlet(torch.full((5,), 0.5, dtype=torch.float64))


def points(n):
    torch.manual_seed(1)
    return X.sample((n,))


@pytest.mark.parametrize("kernel", ["matern", "rbf"])
def test_hyperparameters_of_a_known_process_are_found(kernel):
    x = points(120)
    K = surrogate.correlation(x, x, torch.tensor([0.5], dtype=torch.float64), kernel)[0]
    L = torch.linalg.cholesky(4.0 * K + 0.04 * torch.eye(120, dtype=torch.float64))
    y = 10.0 + L @ torch.randn(120, 1, dtype=torch.float64)
    (h,) = surrogate.fit_hyperparameters(x, y, kernel)
    assert 0.25 < h.lengthscale < 1.0
    assert 0.02 < h.noise < 0.08
    assert h.mean == pytest.approx(10.0, abs=3.0)
    assert 1.0 < h.scale < 16.0


def test_the_grid_holds_the_most_likely_parameters():
    # No step of a factor 1.5 in any parameter makes the data more probable, priors included
    # only for lengthscale and noise; a small tolerance for the pseudo-observations.
    x = points(60)
    y = (x.square().sum(1, keepdim=True) * 3.0).sin()
    model = surrogate.fit(x, y).models[0]

    def log_likelihood(**changes):
        base = model.covar_module.base_kernel
        saved = (base.lengthscale.item(), model.covar_module.outputscale.item())
        base.lengthscale = saved[0] * changes.get("lengthscale", 1.0)
        model.covar_module.outputscale = saved[1] * changes.get("scale", 1.0)
        model.train()
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        value = mll(model(x), y[:, 0]).item()
        base.lengthscale, model.covar_module.outputscale = saved
        model.eval()
        return value

    best = log_likelihood()
    for name in ("lengthscale", "scale"):
        for factor in (1.5, 1 / 1.5):
            assert log_likelihood(**{name: factor}) < best + 0.05, (name, factor)


def test_objectives_are_fitted_each_for_itself():
    x = points(40)
    Y = torch.stack([x[:, 0], (8 * x[:, 1]).sin()], dim=1)
    together = surrogate.fit_hyperparameters(x, Y)
    alone = [surrogate.fit_hyperparameters(x, Y[:, j : j + 1])[0] for j in range(2)]
    for a, b in zip(together, alone, strict=True):
        assert (a.lengthscale, a.noise) == (b.lengthscale, b.noise)
        assert a.scale == pytest.approx(b.scale, rel=1e-9)


def test_prediction_follows_smooth_data():
    x, new = points(60), X.sample((50,))
    f = lambda w: torch.stack([(w * w).sum(-1), w[:, 0] - w[:, 1] * w[:, 2]], dim=1)  # noqa: E731
    with torch.no_grad():
        posterior = surrogate.fit(x, f(x)).posterior(new)
    error = (posterior.mean - f(new)).abs().max(dim=0).values
    assert (error < 0.05).all()
    assert (posterior.variance > 0).all()


@pytest.mark.parametrize("n", [2, 5])
def test_constant_and_few_values_do_not_break_it(n):
    x = points(n)
    Y = torch.stack([torch.full((n,), 0.7, dtype=torch.float64), x[:, 0]], dim=1)
    with torch.no_grad():
        mean = surrogate.fit(x, Y).posterior(points(9)).mean
    assert torch.isfinite(mean).all()
    torch.testing.assert_close(mean[:, 0], torch.full((9,), 0.7, dtype=torch.float64))


def test_equal_points_do_not_break_it():
    x = points(3).repeat(4, 1)
    assert torch.isfinite(surrogate.fit(x, x[:, :1]).posterior(points(4)).mean).all()


def test_a_lengthscale_per_coordinate_tells_which_matters():
    torch.manual_seed(0)
    x = torch.rand(40, 2, dtype=torch.float64)
    model = surrogate.fit_ard(x, (6 * x[:, :1]).sin())
    scales = model.covar_module.lengthscale[0]
    assert scales[1] > 3 * scales[0]
