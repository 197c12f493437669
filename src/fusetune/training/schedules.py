"""Learning rate schedules of the papers that Transformers does not have.

`linear`, `cosine`, `constant`, `constant_with_warmup` and the others come from Transformers.

.. [Smith2017] L. Smith. Cyclical Learning Rates for Training Neural Networks. WACV 2017.
.. [Izmailov2018] P. Izmailov et al. Averaging Weights Leads to Wider Optima. UAI 2018.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fusetune.training.collect import plan_steps


def cyclic(
    warmup: int,
    total: int,
    *,
    cycles: int = 10,
    floor: float = 0.1,
    start: float | None = None,
) -> Callable[[int], float]:
    """Triangular cycles between the learning rate and `floor` times it [Smith2017].

    Each cycle starts at the peak and ends at the floor, so that members collected at the
    ends of cycles are settled ones [Izmailov2018].

    Args:
        warmup: Steps.
        total: Steps of the whole training, the warm-up included.
        cycles: How many.
        floor: The lowest learning rate, as a share of the highest.
        start: Share of the training before the first cycle, with a constant learning rate
            after the warm-up; by default, the cycles follow the warm-up. With `start` equal to
            a collector's `collect_from` and as many cycles as members, each cycle ends
            with the step whose model is kept (`collect.plan_steps`).
    """
    ends = () if start is None else plan_steps(total, cycles, start)
    begins = () if start is None else (round(total * start), *ends)

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        if start is None:
            position = (step - warmup) / max(1, total - warmup) * cycles % 1.0
        elif step < begins[0] or step >= total:
            position = 0.0
        else:
            i = bisect_right(ends, step)
            position = (step - begins[i]) / (ends[i] - begins[i])
        return 1.0 - (1.0 - floor) * position

    return factor


def step(
    warmup: int, total: int, *, gamma: float = 0.1, every: float = 1 / 3
) -> Callable[[int], float]:
    """Constant, multiplied by `gamma` after each share `every` of the training."""

    def factor(current: int) -> float:
        if current < warmup:
            return current / max(1, warmup)
        drops = int((current - warmup) / max(1.0, (total - warmup) * every))
        return float(gamma**drops)

    return factor


SCHEDULES: Mapping[str, Callable[..., Callable[[int], float]]] = {
    "cyclic": cyclic,
    "step": step,
}


def scheduler(
    name: str, optimizer: Optimizer, warmup: int, total: int, options: Mapping[str, Any]
) -> LambdaLR:
    """A PyTorch scheduler for one of `SCHEDULES`.

    Raises:
        TypeError: If the schedule does not know one of the options.
    """
    return LambdaLR(optimizer, SCHEDULES[name](warmup, total, **options))
