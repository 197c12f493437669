"""`model_stock`: between the uniform average and the pretrained model, tensor by tensor.

.. [Jang2024a] D.-H. Jang, S. Yun, D. Han. Model Stock: All we need is just a few fine-tuned
   models. ECCV 2024, equation 5 of section 4.2 for k models.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fusetune.errors import StageError
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.points import OwnModel
from fusetune.members.pool import MemberPool
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin, required
from fusetune.optimization.study import Loop


def model_stock(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
) -> FusionResult:
    """θ_0 + t (θ̄ − θ_0) with t = k c / (1 + (k − 1) c) in each tensor [Jang2024a].

    c is the mean cosine between the ways of two members from the pretrained θ_0. Where
    members agree on the way (c near 1, as in one trajectory), t is near 1 and the result near
    `swa`; where they do not, it falls back towards θ_0. One evaluation, no choice. A
    negative c counts as 0, so that t stays between 0 and 1; a tensor that no member has
    moved stays. θ_0 as a member itself does not count.

    Raises:
        StageError: If θ_0 is not known or is not of the members' shapes.
    """
    anchor = required(origin, "model_stock", "the pretrained model").initial()
    started = time.perf_counter()
    tensors, ratios, sizes = {}, [], []
    for name, info in pool.tensors.items():
        if not info.dtype.is_floating_point:
            continue
        start = _of_anchor(anchor, name, info.shape)
        tensors[name], ratio = _stock(pool, name, start)
        ratios.append(ratio)
        sizes.append(info.numel)
    own = OwnModel.of(tensors)
    computing = time.perf_counter() - started
    result = FusionResult.of(own, evaluator)
    return dataclasses.replace(
        result,
        seconds=result.seconds + computing,
        details={
            "ratio_mean": float(np.average(ratios, weights=sizes)),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        },
    )


def _of_anchor(anchor: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in anchor or tuple(anchor[name].shape) != shape:
        given = tuple(anchor[name].shape) if name in anchor else "nothing of that name"
        raise StageError(
            f"model_stock needs the members' tensors in the pretrained model too: {name} is "
            f"{shape} in the members and {given} there.",
            hint="Give the model that these members were trained from.",
        )
    return anchor[name].detach().cpu().double()


def _stock(pool: MemberPool, name: str, start: Tensor) -> tuple[Tensor, float]:
    """One tensor of the result, in the members' dtype, and its t.

    The cosines of all pairs add up to |Σ_i u_i|² − k, u_i the unit vectors, so that two
    tensors are held, not k.
    """
    k = len(pool.trained)
    total = torch.zeros_like(start)
    units = torch.zeros_like(start)
    moved = 0
    for i in pool.trained:
        way = pool.load_tensor(i, name).double() - start
        total += way
        length = float(way.norm())
        if length > 0.0:
            units += way / length
            moved += 1
    pairs = moved * (moved - 1)
    cosine = (float(units.square().sum()) - moved) / pairs if pairs else 1.0
    cosine = min(max(cosine, 0.0), 1.0)
    ratio = k * cosine / (1.0 + (k - 1) * cosine)
    stored = pool.tensors[name].dtype
    return (start + ratio / k * total).to(stored), ratio
