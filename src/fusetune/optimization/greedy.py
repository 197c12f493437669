"""The greedy soup as a replay of what has been evaluated.

Members are sorted by the primary metric; each joins the running average only if that
average then improves. Of equal metrics the lower loss counts. Written as a function of the
evaluations made so far, the same few lines serve an optimiser that asks for one evaluation at a
time, and a resumed study.

.. [Wortsman2022] M. Wortsman et al. Model soups: averaging weights of multiple fine-tuned
   models improves accuracy without increasing inference time. ICML 2022, recipe 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Subset = frozenset[int]

Score = float | tuple[float, float]
"""The primary metric, or a pair of it and the negative loss, which tells equals apart."""


class GreedySoup:
    """The greedy soup over k members whose own values are known.

    Args:
        members: The score of each single member; one that could not be evaluated has NaN or
            −inf and is never used.

    Raises:
        ValueError: If no member has a finite value.
    """

    def __init__(self, members: Sequence[Score]) -> None:
        self._values = [_key(v) for v in members]
        usable = [i for i, v in enumerate(self._values) if math.isfinite(v[0])]
        if not usable:
            raise ValueError(f"A greedy soup needs one member with a value; got {members}.")
        # Sorted is stable: of two equal members the earlier one comes first.
        order = sorted(usable, key=lambda i: self._values[i], reverse=True)
        self.order: tuple[int, ...] = tuple(order)

    def next_candidate(self, history: Mapping[Subset, Score]) -> Subset | None:
        """The average that has to be evaluated next; None once the soup is complete.

        Args:
            history: The score of every plain average evaluated so far, by its members; NaN or
                −inf for one that failed.
        """
        return self._replay(history)[1]

    def result(self, history: Mapping[Subset, Score]) -> Subset:
        """The members of the soup, as far as `history` tells."""
        return self._replay(history)[0]

    def _replay(self, history: Mapping[Subset, Score]) -> tuple[Subset, Subset | None]:
        kept = frozenset(self.order[:1])
        best = self._values[self.order[0]]
        for member in self.order[1:]:
            candidate = kept | {member}
            if candidate not in history:
                return kept, candidate
            if _key(history[candidate]) > best:  # false for NaN: a failed one is not kept
                kept, best = candidate, _key(history[candidate])
        return kept, None


def _key(score: Score) -> tuple[float, float]:
    """The score as a pair that Python orders by its first number, then by its second."""
    return score if isinstance(score, tuple) else (float(score), 0.0)
