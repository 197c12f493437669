"""`greedy`: the greedy soup.

.. [Wortsman2022] M. Wortsman et al. Model soups: averaging weights of multiple fine-tuned
   models improves accuracy without increasing inference time. ICML 2022, recipe 1.
"""

from __future__ import annotations

from fusetune.evaluation.candidates import starting_points
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.methods.origin import Origin
from fusetune.optimization.greedy import GreedySoup, Score
from fusetune.optimization.study import Loop


def greedy(
    pool: MemberPool,
    evaluator: Evaluator,
    *,
    budget: int,
    seed: int,
    loop: Loop,
    origin: Origin | None = None,
) -> FusionResult:
    """Members in order of the primary metric, kept when the average improves [Wortsman2022].

    Equal metrics are told apart by the loss.
    """
    k = len(pool)
    evaluator.prefetch(starting_points(k))
    primary, first = evaluator.primary, evaluator.objectives[0]

    def value(weights: FusionWeights) -> tuple[float, float]:
        values = evaluator(weights).values
        return primary.sign * values[primary.name], first.sign * values[first.name]

    soup = GreedySoup([value(FusionWeights.one_hot(i, k)) for i in range(k)])
    history: dict[frozenset[int], Score] = {}
    while (subset := soup.next_candidate(history)) is not None:
        history[subset] = value(FusionWeights.uniform(k, subset))
    return FusionResult.of(FusionWeights.uniform(k, soup.result(history)), evaluator)
