"""`fusetune.average` and the command: the average of files, held against one made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

import fusetune
from fusetune.cli import app
from fusetune.errors import MemberError, RecipeError, StageError
from fusetune.library.average import weights_of

State = dict[str, torch.Tensor]


def tiny(seed: int) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 31, "hidden_size": 8, "num_attention_heads": 2}
    return BertForSequenceClassification(
        BertConfig(**sizes, num_hidden_layers=1, intermediate_size=8)
    )


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """checkpoint-5 to checkpoint-20 of one training."""
    for step in (5, 10, 15, 20):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        tiny(step).save_pretrained(folder)
        (folder / "vocab.txt").write_text("[PAD]")
        (folder / "optimizer.pt").write_bytes(b"state")
    return tmp_path / "out"


def by_hand(checkpoints: Path, weights: dict[int, float]) -> State:
    states = {
        step: load_file(checkpoints / f"checkpoint-{step}" / "model.safetensors")
        for step in weights
    }
    first = states[next(iter(weights))]
    return {n: sum(w * states[step][n] for step, w in weights.items()) for n in first}


def assert_is(folder: Path, expected: State) -> None:
    model, info = BertForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)


def test_the_mean_is_an_ordinary_folder(checkpoints: Path, tmp_path: Path) -> None:
    made = fusetune.average(f"{checkpoints}/checkpoint-*", tmp_path / "averaged")
    assert_is(tmp_path / "averaged", by_hand(checkpoints, dict.fromkeys((5, 10, 15, 20), 0.25)))
    assert made.weights.values == (0.25,) * 4
    assert [m.step for m in made.members] == [5, 10, 15, 20]
    assert made.files == ("vocab.txt",)
    assert made.parameters == sum(p.numel() for p in tiny(0).parameters())
    names = {path.name for path in (tmp_path / "averaged").iterdir()}
    assert {"config.json", "fusion.json", "README.md", "vocab.txt"} <= names
    assert "optimizer.pt" not in names
    record = json.loads((tmp_path / "averaged" / "fusion.json").read_text())
    assert (record["method"], record["shape"]) == ("average", "mean")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"last": 2}, {15: 0.5, 20: 0.5}),
        ({"from_step": 10}, {10: 1 / 3, 15: 1 / 3, 20: 1 / 3}),
        ({"every": 2}, {10: 0.5, 20: 0.5}),
        ({"from_step": 10, "last": 2, "weights": (0.2, 0.8)}, {15: 0.2, 20: 0.8}),
        ({"last": 3, "shape": "ema:0.5"}, {10: 1 / 7, 15: 2 / 7, 20: 4 / 7}),
        ({"last": 3, "shape": "linear"}, {10: 0.25, 15: 0.5, 20: 0.25}),
    ],
)
def test_which_and_with_what_weights(
    options: dict[str, object], expected: dict[int, float], checkpoints: Path, tmp_path: Path
) -> None:
    made = fusetune.average(checkpoints, tmp_path / "averaged", **options)  # type: ignore[arg-type]
    assert [m.step for m in made.members] == list(expected)
    assert made.weights.values == pytest.approx(tuple(expected.values()))
    assert_is(tmp_path / "averaged", by_hand(checkpoints, expected))


@pytest.mark.parametrize("k", [1, 2, 3, 15])
@pytest.mark.parametrize("shape", ["mean", "linear", "sqrt", "ema:0.9"])
def test_shapes_are_weights(shape: str, k: int) -> None:
    weights = weights_of(shape, k)
    assert len(weights) == k
    assert min(weights) >= 0.0
    assert math.fsum(weights) == pytest.approx(1.0)


def test_a_shape_weights_updates_as_its_decay_does() -> None:
    # Updates of a decaying rate, seen from the last member: update i counts with the weights of
    # the members from i on. That is the mean of 1 − √x over its third of the window.
    weights = weights_of("sqrt", 4)
    counted = [math.fsum(weights[i:]) for i in (1, 2, 3)]
    x = torch.linspace(0.0, 1.0, 300_001, dtype=torch.float64)
    means = [(1.0 - x[i * 100_000 : (i + 1) * 100_000 + 1].sqrt()).mean() for i in range(3)]
    assert counted == pytest.approx([float(m) for m in means], abs=1e-5)


def test_a_step_back_towards_the_base(checkpoints: Path, tmp_path: Path) -> None:
    tiny(99).save_pretrained(tmp_path / "base")
    made = fusetune.average(
        checkpoints, tmp_path / "averaged", last=2, base=tmp_path / "base", base_weight=0.2
    )
    assert made.weights.values == pytest.approx((0.4, 0.4, 0.2))
    expected = by_hand(checkpoints, {15: 0.4, 20: 0.4})
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert_is(tmp_path / "averaged", {n: t + 0.2 * base[n] for n, t in expected.items()})


def test_another_dtype_and_shards(checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "averaged"
    made = fusetune.average(checkpoints, folder, dtype="bfloat16", max_shard_size=1000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = BertForSequenceClassification.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert made.nbytes == 2 * made.parameters
    expected = by_hand(checkpoints, dict.fromkeys((5, 10, 15, 20), 0.25))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name].bfloat16(), rtol=0.01, atol=1e-6)


def test_adapters_are_averaged_exactly(tmp_path: Path) -> None:
    tiny(0).save_pretrained(tmp_path / "base")
    merged = []
    for step in (1, 2):
        model = peft.get_peft_model(
            BertForSequenceClassification.from_pretrained(tmp_path / "base"),
            peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"),
        )
        torch.manual_seed(step)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_()
        model.save_pretrained(tmp_path / "out" / f"checkpoint-{step}")
        merged.append(model.merge_and_unload().state_dict())
    fusetune.average(tmp_path / "out", tmp_path / "merged", weights=[0.25, 0.75])
    expected = {n: 0.25 * merged[0][n] + 0.75 * merged[1][n] for n in merged[0]}
    assert_is(tmp_path / "merged", expected)
    (tmp_path / "base" / "vocab.txt").write_text("[PAD]")
    made = fusetune.average(
        tmp_path / "out", tmp_path / "adapter", weights=[0.25, 0.75], form="adapter"
    )
    assert "vocab.txt" in made.files  # of the base: what is said is what is copied
    assert all((tmp_path / "adapter" / name).is_file() for name in made.files)
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": 10}, r"last 10 checkpoints were asked for, and there are 4.*from 1 to 4"),
        ({"from_step": 20}, r"two checkpoints or more, and 1 is left of those of step 5, 10"),
        ({"weights": (0.5, 0.5)}, r"2 weights were given for 4 checkpoints"),
        (
            {"weights": (1, 1, 1, 1)},
            r"sum to 4, and not to 1\. Divided by their sum they are 0\.25,0\.25,0\.25,0\.25",
        ),
        ({"weights": (2, -1, 0, 0)}, r"numbers of 0 or more"),
        ({"shape": "cosine"}, r"no shape 'cosine'.*mean, linear, sqrt"),
        ({"shape": "ema:2"}, r"no shape 'ema:2'.*between 0 and 1"),
        ({"base_weight": 0.3}, r"go together; got the weight 0\.3 and no base"),
        ({"every": 0}, r"--every must be 1 or more"),
        ({"dtype": "int8"}, r"written as float32, bfloat16, float16; got 'int8'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    options: dict[str, object], message: str, checkpoints: Path, tmp_path: Path
) -> None:
    with pytest.raises(MemberError, match=message):
        fusetune.average(checkpoints, tmp_path / "averaged", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "averaged").exists()


def test_options_are_checked_before_any_file_is_read(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(RecipeError, match=r"fuse\.export is 'pickle'"):
        fusetune.average(nowhere, tmp_path / "averaged", form="pickle")
    with pytest.raises(MemberError, match="got 'int8'"):
        fusetune.average(nowhere, tmp_path / "averaged", dtype="int8")  # type: ignore[arg-type]


def test_no_checkpoint_and_nothing_foreign_is_replaced(
    checkpoints: Path, tmp_path: Path
) -> None:
    for place in (
        checkpoints,
        checkpoints / "checkpoint-5",
        checkpoints / "checkpoint-5" / "x",
    ):
        with pytest.raises(StageError, match=r"the checkpoint .* is there"):
            fusetune.average(checkpoints, place, force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(StageError, match="is no exported model"):
        fusetune.average(checkpoints, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()
    fusetune.average(checkpoints, tmp_path / "mine", force=True)
    assert not (tmp_path / "mine" / "thesis.tex").exists()


def test_the_command_says_what_it_does(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["average", "out/checkpoint-*", "--out", "averaged", "--last", "2"]
    said = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert said.exit_code == 0
    assert "Would average 2 checkpoints" in said.output
    assert not Path("averaged").exists()
    done = CliRunner().invoke(app, [*arguments, "--shape", "ema:0.25"])
    assert done.exit_code == 0, done.output
    assert "checkpoint-15  step 15       0.2000" in done.output
    assert "Load it: BertForSequenceClassification.from_pretrained('averaged')" in done.output
    wrong = CliRunner().invoke(app, [*arguments, "--weights", "a,b"])
    assert wrong.exit_code == 2
    members = CliRunner().invoke(app, ["members", "out/checkpoint-*"])
    assert "fusetune average 'out/checkpoint-*' --out averaged" in members.output
