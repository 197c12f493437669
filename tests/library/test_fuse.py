"""`fuse` on a problem whose answer is known: members θ_i, loss |θ̄(w) − target|²."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fusetune
from fusetune.errors import EvaluateError, MemberError, NoResultError, RecipeError, RunError
from fusetune.library.search import Step

TARGET = torch.tensor([0.5, 0.3, 0.2])
OBJECTIVES = ["loss", "score:maximize"]


class Point(nn.Module):
    """A model that is a point of the plane through its members."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(3))
        self.norm = nn.BatchNorm1d(3)


def evaluate(model: nn.Module) -> dict[str, Any]:
    place: Tensor = model.get_parameter("place").detach()
    loss = (place - TARGET).square().sum()
    return {"loss": loss, "score": 1.0 - loss.sqrt(), "ignored": "text"}


@pytest.fixture
def members(tmp_path: Path) -> Path:
    """The corners of the simplex, collected by a loop of one's own."""
    model, folder = Point(), tmp_path / "members"
    collector = fusetune.MemberCollector(folder, members=3, collect_from=0.4, total_steps=5)
    for step in range(5):
        with torch.no_grad():
            model.place.copy_(torch.eye(3)[max(step - 2, 0)])
            model.norm(torch.randn(4, 3))
        collector.step(model)
    return folder


@pytest.fixture
def fuse(members: Path) -> Callable[..., fusetune.Fused]:
    def call(**options: Any) -> fusetune.Fused:
        given = {"evaluate": evaluate, "objectives": OBJECTIVES, "model_init": Point}
        return fusetune.fuse(members, **{**given, "budget": 30, **options})

    return call


def test_the_minimum_is_found_saved_and_reported(
    fuse: Callable[..., fusetune.Fused], tmp_path: Path
) -> None:
    steps: list[Step] = []
    result = fuse(callbacks=[steps.append], choose="best")
    assert result.weights.values == pytest.approx(TARGET.tolist(), abs=0.03)
    assert result.values["loss"] < 1e-3
    assert [step.number for step in steps] == list(range(1, 31))
    assert steps[-1].best is not None
    assert steps[-1].best.weights == result.weights
    assert result.front[0].values["loss"] == min(c.values["loss"] for c in result.candidates)
    assert result.methods["finetune"].values["loss"] == pytest.approx(0.38)  # the first corner

    saved = load_file(result.save(tmp_path / "fused") / "model.safetensors")
    torch.testing.assert_close(saved["place"], torch.tensor(result.weights.values))
    assert saved["norm.num_batches_tracked"] == 5  # the last member's
    torch.testing.assert_close(result.model().get_parameter("place").detach(), saved["place"])
    page = result.report(tmp_path / "report.html", title="A <plane>").read_text()
    assert "A &lt;plane&gt;" in page
    assert "step-000005" in page
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", page)


def test_other_points_of_the_front(fuse: Callable[..., fusetune.Fused]) -> None:
    result = fuse(
        evaluate=lambda model: {
            "loss": float((model.get_parameter("place").detach()[0] - 1.0).square()),
            "score": float(model.get_parameter("place").detach()[1]),
        }
    )
    picked = result.pick("loss <= 0.3, max score")
    assert picked.values["loss"] <= 0.3
    assert picked.values["score"] == max(
        c.values["score"] for c in result.candidates if c.values["loss"] <= 0.3
    )
    assert len(result.front) > 3
    nearest = max(c.values["score"] for c in result.candidates)
    with pytest.raises(NoResultError, match="No candidate keeps score >= 2") as raised:
        result.pick("score >= 2, min loss")
    assert f"Nearest are: loss 1.0000, score {nearest:.4f}" in str(raised.value)
    with pytest.raises(RecipeError, match=r"pick: no objective 'scor' \(did you mean score"):
        result.pick("scor >= 2, min loss")


def test_a_call_that_was_cut_off_goes_on(
    fuse: Callable[..., fusetune.Fused], tmp_path: Path
) -> None:
    calls = 0

    def counted(model: nn.Module) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return evaluate(model)

    class CutOffError(Exception):
        pass

    def cut_off(step: Step) -> None:
        if step.number == 8:
            raise CutOffError

    options = {"budget": 16, "evaluate": counted, "folder": tmp_path / "run"}
    with pytest.raises(CutOffError):
        fuse(**options, callbacks=[cut_off])
    assert calls == 8
    resumed = fuse(**options)
    assert calls == 17  # the consensus is one more
    assert resumed.candidates == fuse(budget=16).candidates
    with pytest.raises(RunError, match="a fusion with other seed"):
        fuse(**options, seed=1)


def test_candidates_one_by_one(members: Path) -> None:
    search = fusetune.Fusion(
        members, evaluate=evaluate, objectives=OBJECTIVES, model_init=Point, budget=6
    )
    found = [step.candidate for step in search]
    assert [c.weights.values for c in found[:3] if c] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert search.finish().candidates[:6] == tuple(found)


def test_a_candidate_may_fail(fuse: Callable[..., fusetune.Fused]) -> None:
    def fragile(model: nn.Module) -> dict[str, Any]:
        place = model.get_parameter("place")
        if place[2] == 1.0:
            raise RuntimeError("out of memory")
        return {**evaluate(model), **({"loss": float("nan")} if place[2] > 0.3 else {})}

    result = fuse(evaluate=fragile, budget=12)
    assert "2 of 12 candidates failed." in result.notes  # the third member and the average
    assert len(result.candidates) >= 10
    assert result.weights.values[2] <= 0.3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda model: 1 / 0, "evaluate raised ZeroDivisionError on the first model"),
        (lambda model: 0.5, "must return a mapping from objective to number"),
        (lambda model: {"loss": 1.0}, "did not return the objective 'score'; it returned loss"),
        (lambda model: {"loss": torch.ones(2), "score": 1}, r"a Tensor of shape \(2,\)"),
        (lambda model: {"loss": "low", "score": 1}, "'loss' is a str"),
        (lambda model: evaluate(model.double()), "changed 3 of the model's parameters"),
        ("f1", "must be a function of a model"),
    ],
)
def test_a_function_that_does_not_do_its_part(
    fuse: Callable[..., fusetune.Fused], function: Any, message: str
) -> None:
    with pytest.raises(EvaluateError, match=message):
        fuse(evaluate=function)


def test_nothing_that_can_be_evaluated(fuse: Callable[..., fusetune.Fused]) -> None:
    nan = {"loss": float("nan"), "score": 0.5}
    with pytest.raises(NoResultError):
        fuse(evaluate=lambda model: nan, budget=12)
    with pytest.raises(EvaluateError, match="'score' needs a direction"):
        fuse(objectives=["loss", "score"])


def test_the_base_as_a_member(
    fuse: Callable[..., fusetune.Fused], members: Path, tmp_path: Path
) -> None:
    base = Point()
    base.place.data = torch.tensor([1.0, 1.0, -1.0])
    result = fuse(base_member=base, budget=20, folder=tmp_path / "run")
    assert result.pool.names[3:] == ("base",)
    singles = {c.weights.values: c.values["loss"] for c in result.candidates}
    assert singles[0.0, 0.0, 0.0, 1.0] == pytest.approx(0.25 + 0.49 + 1.44)
    third = 1 / 3
    assert singles.keys() >= {(third, third, third, 0.0), (0.25,) * 4}
    assert result.methods["swa"].weights.values == (third, third, third, 0.0)
    assert result.methods["finetune"].weights.values == (1.0, 0.0, 0.0, 0.0)
    again = fuse(base_member=base, budget=20, folder=tmp_path / "run")
    assert again.candidates == result.candidates
    with pytest.raises(MemberError, match="base_member=True is for adapters"):
        fuse(base_member=True)
    with pytest.raises(fusetune.FusetuneError, match="names no class of transformers"):
        fuse(base_member="some/folder")


def test_pickled_files_by_consent(tmp_path: Path) -> None:
    for epoch in range(3):
        model = Point()
        model.place.data = torch.eye(3)[epoch]
        torch.save({"model_state_dict": model.state_dict()}, tmp_path / f"epoch_{epoch}.pt")
    options = {"evaluate": evaluate, "objectives": OBJECTIVES, "model_init": Point}
    with pytest.raises(MemberError, match="allow_pickle=True"):
        fusetune.fuse(str(tmp_path / "*.pt"), **options)
    options |= {"allow_pickle": True, "budget": 8, "folder": tmp_path / "run"}
    result = fusetune.fuse(str(tmp_path / "*.pt"), **options)
    assert result.pool.names == ("epoch_0.pt", "epoch_1.pt", "epoch_2.pt")
    saved = load_file(result.save(tmp_path / "fused") / "model.safetensors")
    torch.testing.assert_close(saved["place"], torch.tensor(result.weights.values))
    assert "epoch_2.pt" in result.report(tmp_path / "report.html").read_text()
    assert len(list((tmp_path / "run/converted").iterdir())) == 3
    assert fusetune.fuse(str(tmp_path / "*.pt"), **options).candidates == result.candidates


def test_training_in_the_evaluation_is_noticed(fuse: Callable[..., fusetune.Fused]) -> None:
    def trains(model: nn.Module) -> dict[str, Any]:
        model.get_parameter("place").data.mul_(1.0)
        with torch.no_grad():
            model.get_parameter("place").add_(0.1)
        return evaluate(model)

    with pytest.raises(EvaluateError, match="changed 1 of the model's parameters, as place"):
        fuse(evaluate=trains)
    result = fuse(evaluate=lambda model: evaluate(copy.deepcopy(model)), budget=6)
    assert len(result.candidates) >= 6


def test_bad_arguments(fuse: Callable[..., fusetune.Fused], members: Path) -> None:
    with pytest.raises(EvaluateError, match="must reach each of the 3 members; it is 2"):
        fuse(budget=2)
    with pytest.raises(EvaluateError, match=r"Unknown method 'mob' \(did you mean mobo"):
        fuse(method="mob")
    with pytest.raises(fusetune.FusetuneError, match="Give model_init"):
        fuse(model_init=None)
    one = sorted(members.iterdir())[0]
    with pytest.raises(MemberError, match="at least two checkpoints"):
        fusetune.fuse(one, evaluate=evaluate, objectives=OBJECTIVES, model_init=Point)


def test_a_loop_that_is_longer_than_it_said(tmp_path: Path) -> None:
    collector = fusetune.MemberCollector(
        tmp_path / "m", members=2, total_steps=2, collect_from=0
    )
    model = nn.Linear(1, 1)
    assert collector.step(model) == tmp_path / "m/step-000001"
    collector.step(model)
    with pytest.raises(fusetune.FusetuneError, match="more steps than the 2 of total_steps"):
        collector.step(model)


@pytest.mark.parametrize("method", ["mobo", "bo", "random"])
def test_where_the_metric_is_equal_the_lower_loss_is_chosen(
    fuse: Callable[..., fusetune.Fused], method: str
) -> None:
    def tied(model: nn.Module) -> dict[str, Any]:
        return {**evaluate(model), "score": 1.0}

    found = fuse(evaluate=tied, method=method)
    assert found.values["score"] == 1.0
    members = [c.values["loss"] for c in found.candidates if max(c.weights.values) == 1.0]
    assert found.values["loss"] <= min([*members, 1.0])
    lowest = found.methods[method].values["loss"]  # of all that the search evaluated
    assert found.methods[f"{method}.posterior"].values["loss"] == lowest
    assert found.methods[f"{method}.knee"].values["loss"] == lowest


def test_a_rule_that_ties_with_a_member_and_has_a_higher_loss_gives_way(
    fuse: Callable[..., fusetune.Fused],
) -> None:
    def corner(model: nn.Module) -> dict[str, Any]:
        place = model.get_parameter("place").detach()
        return {"loss": 1.0 - place.max(), "score": 1.0}  # single members are the best

    found = fuse(evaluate=corner)
    assert found.values["loss"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["F1 (macro)", "pass@1", "f1,macro", "5-shot acc"])
def test_pick_knows_every_name_that_an_objective_may_have(
    fuse: Callable[..., fusetune.Fused], name: str
) -> None:
    def named(model: nn.Module) -> dict[str, Any]:
        found = evaluate(model)
        return {"loss": found["loss"], name: found["score"]}

    found = fuse(evaluate=named, objectives=["loss", f"{name}:maximize"], budget=8)
    best = max(found.candidates, key=lambda c: c.values[name])
    assert found.pick(f"loss <= 9, max {name}").values[name] == best.values[name]
    assert found.pick(f"{name} >= -9, min loss").values["loss"] <= best.values["loss"]
    with pytest.raises(RecipeError, match="no objective"):
        found.pick("f2 >= 1, min loss")
