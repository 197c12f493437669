import math

import numpy as np
import pytest

from fusetune.optimization.greedy import GreedySoup


def by_the_paper(value, k):
    """Recipe 1 of Wortsman 2022, evaluating on the way."""
    order = sorted(range(k), key=lambda i: -value(frozenset({i})))
    soup, best, asked = {order[0]}, value(frozenset({order[0]})), []
    for member in order[1:]:
        asked.append(frozenset(soup | {member}))
        if value(asked[-1]) > best:
            soup, best = soup | {member}, value(asked[-1])
    return soup, asked


@pytest.mark.parametrize("seed", range(20))
def test_replay_does_what_the_paper_does(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 8))
    table = {}

    def value(subset):
        if subset not in table:
            table[subset] = float(rng.normal() + 0.3 * len(subset))
        return table[subset]

    expected, asked = by_the_paper(value, k)
    soup = GreedySoup([value(frozenset({i})) for i in range(k)])
    history, candidates = {}, []
    while (candidate := soup.next_candidate(history)) is not None:
        candidates.append(candidate)
        history[candidate] = value(candidate)
    assert candidates == asked
    assert soup.result(history) == expected


def test_an_equal_average_does_not_improve():
    soup = GreedySoup([1.0, 0.9, 0.8])
    history = {frozenset({0, 1}): 1.0, frozenset({0, 2}): 1.1}
    assert soup.next_candidate(history) is None
    assert soup.result(history) == {0, 2}


def test_known_averages_are_not_asked_for_again():
    soup = GreedySoup([1.0, 0.9])
    assert soup.next_candidate({}) == {0, 1}
    assert soup.next_candidate({frozenset({0, 1}): 0.5}) is None


def test_of_equal_members_the_earlier_comes_first():
    assert GreedySoup([0.5, 0.7, 0.7]).order == (1, 2, 0)


def test_failed_members_and_averages_are_left_out():
    soup = GreedySoup([0.5, math.nan, 0.7, -math.inf])
    assert soup.order == (2, 0)
    assert soup.result({frozenset({0, 2}): math.nan}) == {2}
    with pytest.raises(ValueError, match="one member with a value"):
        GreedySoup([math.nan])


def test_of_equal_metrics_the_lower_loss_counts():
    soup = GreedySoup([(0.7, -0.5), (0.7, -0.3), (0.7, -0.4)])
    assert soup.order == (1, 2, 0)
    history = {frozenset({1, 2}): (0.7, -0.29), frozenset({0, 1, 2}): (0.7, -0.31)}
    assert soup.result(history) == {1, 2}
    assert soup.result({**history, frozenset({1, 2}): (0.7, -0.3)}) == {1}
    assert soup.result({frozenset({1, 2}): (0.69, -0.1), frozenset({0, 1}): -math.inf}) == {1}
