"""The greedy soup as a replay of what has been evaluated.

Members are sorted by the primary metric; each joins the running average only if that
average then improves. Written as a function of the evaluations made so far, the same few
lines serve an optimiser that asks for one evaluation at a time, and a resumed study.

.. [Wortsman2022] M. Wortsman et al. Model soups: averaging weights of multiple fine-tuned
   models improves accuracy without increasing inference time. ICML 2022, recipe 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Subset = frozenset[int]


class GreedySoup:
    """The greedy soup over k members whose own values are known.

    Args:
        members: The primary metric of each single member, to be maximised; a member that
            could not be evaluated has NaN or −inf and is never used.

    Raises:
        ValueError: If no member has a finite value.
    """

    def __init__(self, members: Sequence[float]) -> None:
        self._values = [float(v) for v in members]
        usable = [i for i, v in enumerate(self._values) if math.isfinite(v)]
        if not usable:
            raise ValueError(f"A greedy soup needs one member with a value; got {members}.")
        # Sorted is stable: of two equal members the earlier one comes first.
        self.order: tuple[int, ...] = tuple(sorted(usable, key=lambda i: -self._values[i]))

    def next_candidate(self, history: Mapping[Subset, float]) -> Subset | None:
        """The average that has to be evaluated next; None once the soup is complete.

        Args:
            history: Primary metric, to be maximised, of every plain average evaluated so
                far, by its members; NaN or −inf for one that failed.
        """
        return self._replay(history)[1]

    def result(self, history: Mapping[Subset, float]) -> Subset:
        """The members of the soup, as far as `history` tells."""
        return self._replay(history)[0]

    def _replay(self, history: Mapping[Subset, float]) -> tuple[Subset, Subset | None]:
        kept = frozenset(self.order[:1])
        best = self._values[self.order[0]]
        for member in self.order[1:]:
            candidate = kept | {member}
            if candidate not in history:
                return kept, candidate
            if history[candidate] > best:  # false for NaN: a failed average is not kept
                kept, best = candidate, history[candidate]
        return kept, None
