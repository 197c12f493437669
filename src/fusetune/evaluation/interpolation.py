"""What the outcomes of evaluated averages say of all others, example by example.

Notation: k members, t evaluated averages, b new points, n examples, c columns; W: `t x k`.

A metric of some hundred examples is a staircase in w, on which a surrogate of its values sees
noise. The predictions below it are smooth: to first order those of θ̄(w) are the mixture
Σ w_i z_i (`ensemble`), to second order

    z(θ̄(w)) − Σ w_i z_i ≈ Σ_{i<j} w_i w_j c_ij,

with one vector c_ij of n · c numbers for each pair of members, the larger the farther the two
are apart. Independent normal c_ij, with the distances of the members' predictions for
variances, make the left side a Gaussian process over w with the kernel

    Σ_{i<j} d_ij (w_i w_j) (v_i v_j),

here times a squared exponential of |w − v|, for what the second order leaves. All n · c numbers
share it, so that a few evaluations fix every one of them, and the objectives of any w follow
from its predictions: composite Bayesian optimisation [Astudillo2019]_.

.. [Astudillo2019] R. Astudillo, P. Frazier. Bayesian Optimization of Composite Functions.
   ICML 2019.
.. [Rasmussen2006] C. E. Rasmussen, C. K. I. Williams. Gaussian Processes for Machine
   Learning. MIT Press 2006, chapters 2.2, 5.4.1 and 5.4.2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusetune.evaluation.ensemble import Ensemble

Array = NDArray[np.float64]

LENGTHSCALES = np.geomspace(0.2, 10.0, 12)  # points of the simplex are at most √2 apart
NOISES = np.array([1e-8, 1e-4, 1e-2])  # variance, as a share of the process's: of low precision
SMALLEST = 1e-12
COLUMNS = 1 << 16  # numbers of each average that are multiplied at once, in double precision


class Interpolation:
    """Predictions of θ̄(w) for any w, from those of evaluated averages.

    Exact at the members, and at the evaluated averages up to the noise.

    Args:
        ensemble: The members' predictions, and what makes objectives of predictions.
        weights: `t x k`; averages that were evaluated, of members that can be.
        predictions: `t x n x c`; what came out, finite.

    Attributes:
        weights: As given.
        lengthscale: The most probable one, from a grid.
        noise: The same; a variance in units of the kernel.
    """

    def __init__(
        self, ensemble: Ensemble, weights: Array, predictions: NDArray[np.float32]
    ) -> None:
        self.ensemble = ensemble
        self.weights = weights
        k = weights.shape[1]
        self._pairs = np.triu_indices(k, 1)
        mixed = ensemble.mixed(weights)
        self._residuals = predictions.reshape(len(weights), -1) - mixed  # t x n c
        far = np.nan_to_num(ensemble.distances()[self._pairs])
        unit = far[far > 0.0].mean() if far.any() else 1.0
        self._scale = np.sqrt(far / unit)
        self._features = self._second_order(weights)
        self.lengthscale, self.noise = self._fit()
        self._inverse = _inverse(self._kernel(weights), self.noise)
        self._alpha = (self._inverse @ self._residuals).astype(np.float32)

    def predict(self, points: Array) -> dict[str, Array]:
        """Every objective that the task knows, `b` values each, natural sign.

        NaN for averages with a member whose predictions are not finite.

        Args:
            points: `b x k`.
        """

        def correction(rows: slice) -> NDArray[np.float32]:
            return np.asarray(self._kernel(points[rows]).astype(np.float32) @ self._alpha)

        return self.ensemble.predict(points, correction)

    def deviation(self, points: Array, pending: Array | None = None) -> Array:
        """Standard deviation of the predictions, `b`, in units of the process's own.

        Args:
            points: `b x k`.
            pending: `p x k`; points whose predictions will be known: they leave less open.
        """
        known, inverse = self.weights, self._inverse
        if pending is not None and len(pending):
            known = np.vstack([known, pending])
            inverse = _inverse(self._kernel(known, known), self.noise)
        kernel = self._kernel(points, known)
        explained = np.einsum("bt,bt->b", kernel @ inverse, kernel)
        own = np.square(self._second_order(points)).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(own - explained, SMALLEST)))

    def left_out(self) -> tuple[dict[str, Array], Array]:
        """What each evaluated average is predicted to be from the others alone.

        In closed form [Rasmussen2006]_ (5.10, 5.11).

        Returns:
            Every objective, `t` values each; and the standard deviations, `t`, as in
            `deviation`.
        """
        diagonal = np.diag(self._inverse)
        wrong = (self._inverse @ self._residuals) / diagonal[:, None]
        left_out = (self._residuals - wrong).astype(np.float32)
        values = self.ensemble.predict(self.weights, lambda rows: left_out[rows])
        return values, np.asarray(1.0 / np.sqrt(np.maximum(diagonal, SMALLEST)))

    def _second_order(self, points: Array) -> Array:
        """Features whose inner product is the quadratic part of the kernel, `b x k(k-1)/2`."""
        i, j = self._pairs
        return np.asarray(points[:, i] * points[:, j] * self._scale)

    def _kernel(
        self, points: Array, known: Array | None = None, lengthscale: float | None = None
    ) -> Array:
        known = self.weights if known is None else known
        features = self._features if known is self.weights else self._second_order(known)
        apart = (
            np.square(points).sum(axis=1)[:, None]
            + np.square(known).sum(axis=1)
            - 2.0 * points @ known.T
        )
        scale = lengthscale or self.lengthscale
        near = np.exp(-0.5 / scale**2 * np.maximum(apart, 0.0))
        return np.asarray((self._second_order(points) @ features.T) * near)

    def _fit(self) -> tuple[float, float]:
        """Lengthscale and noise at which the residuals are most probable.

        The scale of the process is at its optimum: −½ (t log s² + log |C|) for each of the
        n · c numbers [Rasmussen2006]_ (5.8). Where nothing tells lengthscales apart, the
        longest is taken.
        """
        t, size = self._residuals.shape
        squares = np.zeros((t, t))
        for part in np.array_split(self._residuals, -(-size // COLUMNS), axis=1):
            wide = part.astype(np.float64)
            squares += wide @ wide.T / size
        best = (np.inf, LENGTHSCALES[-1], NOISES[0])
        for lengthscale in LENGTHSCALES[::-1]:
            kernel = self._kernel(self.weights, lengthscale=lengthscale)
            unit = max(np.trace(kernel) / t, SMALLEST)
            eigenvalues, vectors = np.linalg.eigh(kernel)
            along = (vectors * (squares @ vectors)).sum(axis=0)
            for noise in NOISES * unit:
                spectrum = np.maximum(eigenvalues, 0.0) + noise
                variance = max((along / spectrum).mean(), SMALLEST)
                unlikely = t * np.log(variance) + np.log(spectrum).sum()
                if unlikely < best[0] - 1e-9:
                    best = (unlikely, lengthscale, noise)
        return float(best[1]), float(best[2])


def _inverse(kernel: Array, noise: float) -> Array:
    # Symmetric and small; the noise keeps it far from singular.
    return np.asarray(np.linalg.inv(kernel + max(noise, SMALLEST) * np.eye(len(kernel))))
