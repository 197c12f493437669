from __future__ import annotations

import numpy as np
import torch

from fusetune.members.basis import BLOCK, triangular_factor


def test_the_basis_is_orthonormal_and_spans_the_members() -> None:
    """Members as those of one trajectory: much in common, small differences."""
    generator = torch.Generator().manual_seed(0)
    k, n = 6, 2 * BLOCK + 1000
    common = torch.randn(n, generator=generator)
    differences = torch.randn(k, n, generator=generator)
    members = common + 1e-2 * differences
    factor = triangular_factor([members[:, : BLOCK + 7], members[:, BLOCK + 7 :]], k)

    theta = members.double().numpy()
    np.testing.assert_allclose(factor.T @ factor, theta @ theta.T, rtol=1e-12)
    assert np.array_equal(factor, np.triu(factor))
    basis = np.linalg.solve(factor.T, theta)  # rows are orthonormal vectors
    np.testing.assert_allclose(basis @ basis.T, np.eye(k), atol=1e-9)
    projected = theta @ basis.T @ basis
    np.testing.assert_allclose(projected, theta, atol=1e-9)


def test_sixteen_bits_and_short_tiles() -> None:
    members = torch.randn(4, 2, generator=torch.Generator().manual_seed(1)).bfloat16()
    factor = triangular_factor([members], 4)
    theta = members.double().numpy()
    np.testing.assert_allclose(factor.T @ factor, theta @ theta.T, atol=1e-12)
