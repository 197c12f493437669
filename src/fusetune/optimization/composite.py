"""Beliefs about f(w) that rest on a model of its outputs, not of its values.

Notation: t averages that the model knows, b points, k members, m objectives; W: `t x k`,
Y: `t x m`, to be maximised.

The model says what the outputs of any w are, and how far that is uncertain; the objectives
are computed from the outputs [Astudillo2019]_. How far they are uncertain is found by leaving
out one evaluated average after the other. The errors of a loss, which is smooth in the outputs,
are as large as the model's own deviation there, but for a factor. A metric that counts examples
has errors like the root of it: so many examples change sides, and some of them for the better.

.. [Astudillo2019] R. Astudillo, P. Frazier. Bayesian Optimization of Composite Functions.
   ICML 2019.
.. [Rasmussen2006] C. E. Rasmussen, C. K. I. Williams. Gaussian Processes for Machine
   Learning. MIT Press 2006, chapter 5.4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fusetune.optimization.pareto import Values
from fusetune.optimization.simplex import Points

MOST_AVERAGES = 128
"""So many averages make the model; more say the same of the region that matters."""

LEAST_AVERAGES = 5
"""With fewer evaluated averages the model is taken at its word."""

EXPECTED_ERROR = 0.3
"""Of the least certain average, in units of the members' range, before any error is seen. It
counts as much as one observation."""

POWERS = (0.5, 1.0)
"""Of the outputs' deviation, to which the errors of an objective may be proportional."""

LOWEST = -1.0
"""Values are drawn up to there, in units of the members' range: see `fusion.scale`."""

SMALLEST = 1e-9


Found = TypeVar("Found", covariant=True)


class OutputModel(Protocol[Found]):
    """A model of the outputs of θ̄(w), such as `evaluation.interpolation.Interpolation`.

    What it finds are the objectives of b points: `b x m`, to be maximised, with NaN for those
    that do not follow from the outputs; or, as the model itself knows no signs, by name.
    """

    @property
    def weights(self) -> Points:
        """The evaluated averages that it knows, `t x k`."""
        ...

    def predict(self, points: Points) -> Found:
        """The objectives of `b x k` points."""
        ...

    def deviation(self, points: Points, pending: Points | None = None) -> NDArray[np.float64]:
        """Of the outputs, `b`, in any unit; as if those of `pending`, `p x k`, were known."""
        ...

    def left_out(self) -> tuple[Found, NDArray[np.float64]]:
        """Objectives, and deviations, `t`, of each known average by the others alone."""
        ...


class Composite:
    """What a model of the outputs says of each objective.

    Args:
        model: Of the outputs.
        scaled: `t x m`; the values of its averages, with 0 for the reference point.
        reference: `m`; the reference point, in the units of the objectives, to be maximised.
        span: `m`; the unit of `scaled`.

    Attributes:
        densities: `t x m`; log density of each value when it is predicted from the others
            alone, up to a constant; −∞ for an objective that the model does not know.
    """

    def __init__(
        self, model: OutputModel[Values], scaled: Values, reference: Values, span: Values
    ) -> None:
        self._model = model
        self._reference, self._span = reference, span
        found, deviation = model.left_out()
        errors = scaled - self._scaled(found)
        fits = [_Fit.of(errors, deviation**power) for power in POWERS]
        best = np.argmax([fit.densities.sum(axis=0) for fit in fits], axis=0)
        self._power = np.array(POWERS)[best]
        self._unit = np.choose(best, [fit.unit for fit in fits])
        self.densities = np.choose(best, [fit.densities for fit in fits])

    def __call__(self, points: Points, pending: Points | None = None) -> tuple[Values, Values]:
        """Mean and standard deviation, `b x m` each, scaled; NaN where nothing is known.

        Args:
            points: `b x k`.
            pending: `p x k`; points under evaluation, which will leave less uncertain.
        """
        deviation = self._model.deviation(points, pending)[:, None] ** self._power * self._unit
        return self._scaled(self._model.predict(points)), np.maximum(deviation, SMALLEST)

    def outdone(self, others: Values) -> NDArray[np.bool_]:
        """Which of the m objectives something else predicts better, beyond chance.

        It is given up where the other log densities, `t x m`, are higher on average by more
        than the standard error of the difference; of fewer than `LEAST_AVERAGES`, nowhere.
        """
        t = len(others)
        if t < LEAST_AVERAGES:
            return np.zeros(others.shape[1], dtype=bool)
        known = np.where(np.isfinite(self.densities), self.densities, 0.0)
        difference = others - known
        error = difference.std(axis=0, ddof=1) / np.sqrt(t)
        return np.asarray(difference.mean(axis=0) > error)

    def _scaled(self, values: Values) -> Values:
        return np.asarray(np.maximum((values - self._reference) / self._span, LOWEST))


@dataclass(frozen=True, slots=True)
class _Fit:
    """Errors taken to be normal, with deviations that are known but for a factor.

    Attributes:
        unit: `m`; the factors.
        densities: `t x m`; log densities up to a constant; −∞ where errors are NaN.
    """

    unit: Values
    densities: Values

    @classmethod
    def of(cls, errors: Values, deviation: NDArray[np.float64]) -> _Fit:
        """At the most probable factors, with `EXPECTED_ERROR` as one more observation."""
        apart = np.maximum(deviation, SMALLEST)[:, None]
        expected = EXPECTED_ERROR / apart.max()
        squares = np.nansum(np.square(errors / apart), axis=0)
        unit = np.sqrt((squares + expected**2) / (len(errors) + 1))
        densities = -np.log(unit * apart) - 0.5 * np.square(errors / (unit * apart))
        return cls(unit, np.nan_to_num(densities, nan=-np.inf))
