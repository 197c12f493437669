from __future__ import annotations

import pytest

from fusetune.training.collect import plan_steps
from fusetune.training.schedules import cyclic


@pytest.mark.parametrize(("total", "members", "start"), [(100, 5, 0.5), (103, 7, 0.3)])
def test_cycles_end_where_members_are_collected(total: int, members: int, start: float) -> None:
    factor = cyclic(10, total, cycles=members, start=start)
    rates = [factor(step) for step in range(total)]  # of the updates, in order
    ends = plan_steps(total, members, start)
    # The update before a member is the lowest of its cycle, the one after it is the peak.
    lowest = [s + 1 for s in range(total - 1) if rates[s] < rates[s + 1] and s >= 10]
    assert (*lowest, total) == ends
    assert all(rates[end] == 1.0 for end in ends[:-1])
    assert rates[10 : round(total * start) + 1] == [1.0] * (round(total * start) - 9)
    assert min(rates[10:]) > 0.1


def test_cycles_follow_the_warm_up_by_default() -> None:
    factor = cyclic(10, 110, cycles=2, floor=0.0)
    assert [factor(s) for s in (0, 5, 10, 35, 60, 85)] == [0.0, 0.5, 1.0, 0.5, 1.0, 0.5]
