import torch

from fusetune.optimization import surrogate


def test_a_lengthscale_per_coordinate_tells_which_matters():
    torch.manual_seed(0)
    x = torch.rand(40, 2, dtype=torch.float64)
    model = surrogate.fit_ard(x, (6 * x[:, :1]).sin())
    scales = model.covar_module.lengthscale[0]
    assert scales[1] > 3 * scales[0]
