from __future__ import annotations

import pytest

from fusetune.objective import Objective
from fusetune.report.agreement import Trained, agreement, misleads, sentence, to_json
from fusetune.report.page import render
from fusetune.report.transfer import page, scatter

F1 = Objective("f1", "maximize")
ERROR = Objective("error", "minimize")


def rows(*pairs: tuple[float | None, float | None]) -> list[Trained]:
    return [
        Trained(i, {"learning_rate": 1e-5 * (i + 1)}, light=a, full=b, best_member=b, fused=b)
        for i, (a, b) in enumerate(pairs)
    ]


GOOD = rows((0.1, 0.5), (0.2, 0.6), (0.4, 0.7), (0.3, 0.8))
BAD = rows((0.1, 0.8), (0.2, 0.7), (0.3, 0.6), (0.4, 0.5))


def test_what_the_light_variant_would_pick() -> None:
    found = agreement(GOOD, "light", "full", F1)
    assert found.correlation.n == 4
    assert found.correlation.spearman == pytest.approx(0.8)
    assert (found.picked, found.rank) == (2, 2)
    assert found.lost == pytest.approx(0.1)
    assert to_json(found)["spearman"] == found.correlation.spearman
    turned = agreement(GOOD, "light", "full", ERROR)
    assert (turned.picked, turned.rank, turned.lost) == (0, 1, 0.0)


def test_equal_light_values_are_told_apart_by_their_loss() -> None:
    tied = [
        Trained(0, {}, light=0.5, light_loss=0.7, full=0.6),
        Trained(1, {}, light=0.5, light_loss=0.3, full=0.9),
    ]
    assert agreement(tied, "light", "full", F1).picked == 1


def test_a_failed_training_is_left_out() -> None:
    found = agreement([*GOOD, *rows((None, 0.9), (0.9, None))], "light", "full", F1)
    assert found.correlation.n == 4
    assert found.picked == 2


@pytest.mark.parametrize(
    ("trained", "bad", "words"),
    [
        (GOOD, False, "gives the order of the full model: rank correlation 0.80"),
        (BAD, True, "does not give the order of the full model: rank correlation -1.00"),
        (BAD[:3], False, "So few as 3 λ say little"),
        (rows(*[(0.5, 0.1 * i) for i in range(4)]), True, "light variant gives all 4 λ"),
        (rows(*[(0.1 * i, 0.5) for i in range(4)]), False, "full model gives all 4 λ"),
        (rows((0.5, None)), False, "nothing can be compared"),
    ],
)
def test_the_rule_and_its_words(trained: list[Trained], bad: bool, words: str) -> None:
    found = agreement(trained, "light", "full", F1)
    assert misleads(found) == bad
    assert words in sentence(found, "f1")


def test_the_scatter_has_every_pair() -> None:
    found = agreement(GOOD, "light", "full", F1)
    figure = scatter(found, GOOD, ("light", "full"))
    assert figure is not None
    (trace,) = figure.data
    assert list(zip(trace.x, trace.y, strict=True)) == [(r.light, r.full) for r in GOOD]
    assert trace.marker.color[2] not in trace.marker.color[:2]  # what light would pick
    assert scatter(agreement(GOOD[:1], "light", "full", F1), GOOD, ("a", "b")) is None


def test_the_page_has_both_comparisons_and_what_failed() -> None:
    trained = [*GOOD, Trained(4, {"learning_rate": 1.0}, reason="light: <loss> became nan")]
    text = render(page("rte", trained, F1, "It gives it.", facts=("5 λ",), version="0.1.0"))
    assert "Best member and fused model of 4 full trajectories: rank correlation 1.00" in text
    assert "light: &lt;loss&gt; became nan" in text
    assert ">failed<" in text
    assert ">failed<" not in render(page("rte", GOOD, F1, "", facts=(), version="0.1.0"))
    for key in ("transfer-light", "transfer-fused"):
        assert f'id="{key}"' in text
