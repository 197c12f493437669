"""Finished runs whose members are pickled, of several runs, or joined by their base model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from typer.testing import CliRunner

from fusetune.cli import app

NAMES = ("bad", "good")
ASKED = ("--text", "text", "--label", "label", "--metrics", "accuracy")


def fusetune(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result
    return result.exit_code, result.output


def start(tiny_model: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    loaded: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        tiny_model,
        id2label=dict(enumerate(NAMES)),
        label2id={n: i for i, n in enumerate(NAMES)},
    )
    return loaded


def moved(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def state_of_trainer(folder: Path, losses: list[float]) -> None:
    history = [{"step": i + 1, "loss": loss} for i, loss in enumerate(losses)]
    state = {"global_step": len(losses), "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))


@pytest.fixture
def pickles(tiny_model: Path, tmp_path: Path) -> Path:
    """Three checkpoints as an older Transformers wrote them."""
    for step in (1, 2, 3):
        folder = tmp_path / f"out/checkpoint-{step}"
        model = moved(start(tiny_model), step)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        torch.save({}, folder / "optimizer.pt")
    return tmp_path / "out"


def test_pickled_members_and_their_base(
    pickles: Path, tiny_model: Path, sentiment: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    data = sentiment / "validation.jsonl"
    command = ["fuse", "--members", f"{pickles}/checkpoint-*", "--data", data, *ASKED]
    code, said = fusetune(*command)
    assert code == 2
    assert "consent with --allow-pickle" in said
    code, said = fusetune("members", pickles, "--allow-pickle")
    assert code == 0, said
    assert shlex.split(said.splitlines()[-1])[-3:] == ["--allow-pickle", "--out", "FOLDER"]
    code, said = fusetune(*command, "--allow-pickle", "--with-base")
    assert code == 2
    assert "--model: folder or hub id of the model that the training began with" in said
    methods = "fuse.methods=[finetune,swa,ema,greedy,mobo]"
    whole = [*command, "--allow-pickle", "--with-base", "--model", tiny_model, "--out", run]
    code, said = fusetune(*whole, methods, "fuse.evaluations=12")
    assert code == 0, said
    assert "optimiser states beside the weights are left alone" in said

    # The base is a member, with the first checkpoint's head, and no row of the training's.
    record = json.loads((run / "stages/fuse.json").read_text())["methods"]
    assert record["swa"]["point"]["weights"] == [1 / 3, 1 / 3, 1 / 3, 0.0]
    assert record["ema"]["point"]["weights"][3] == 0.0
    assert record["finetune"]["point"]["weights"][3] == 0.0
    assert len(record["mobo"]["point"]["weights"]) == 4
    base = load_file(run / "base/model.safetensors")
    first = torch.load(pickles / "checkpoint-1/pytorch_model.bin", weights_only=True)
    pretrained = load_file(tiny_model / "model.safetensors")
    assert torch.equal(base["classifier.weight"], first["classifier.weight"])
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(base[f"bert.{name}"], pretrained[name])
    fusion = json.loads((run / "fused/fusion.json").read_text())
    assert [m["name"] for m in fusion["members"]][2:] == ["checkpoint-3", "base"]
    # Again: nothing to do; without its checkpoints' bits, an error.
    copies = sorted((run / "converted").iterdir())
    assert len(copies) == 3
    code, said = fusetune(*whole, methods, "fuse.evaluations=12")
    assert "fuse: complete, nothing to do" in said
    torch.save(first, pickles / "checkpoint-2/pytorch_model.bin")
    code, said = fusetune("export", run, "--method", "swa", "--out", tmp_path / "swa")
    assert code == 2
    assert "are not those that this run began with" in said


def test_a_base_that_is_none(
    pickles: Path, tiny_model: Path, sentiment: Path, tmp_path: Path
) -> None:
    command = [
        "fuse", "--members", f"{pickles}/checkpoint-*", "--data",
        sentiment / "validation.jsonl", *ASKED, "--allow-pickle", "--with-base",
        "--out", tmp_path / "run",
    ]  # fmt: skip
    code, said = fusetune(*command, "--model", pickles / "checkpoint-3")
    assert code == 2
    assert "needs the model that the training began with" in said
    config = AutoModelForSequenceClassification.from_pretrained(tiny_model).config
    config.intermediate_size = 16
    other = AutoModelForSequenceClassification.from_config(config)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "other")
    code, said = fusetune(*command, "--model", tmp_path / "other")
    assert code == 2
    assert "The base model cannot be a member: it differs in" in said
    assert not (tmp_path / "run/stages").exists()


def test_adapters_and_their_base(tiny_model: Path, sentiment: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        settings = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
        adapted = peft.get_peft_model(start(tiny_model), settings)
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        adapted.save_pretrained(tmp_path / f"out/checkpoint-{step}")
    run = tmp_path / "run"
    code, said = fusetune(
        "fuse", "--members", f"{tmp_path}/out/checkpoint-*", "--with-base", "--labels",
        "bad,good", "--data", sentiment / "validation.jsonl", *ASKED, "--out", run,
        "fuse.export=adapter", "fuse.evaluations=8",
    )  # fmt: skip
    assert code == 0, said
    code, said = fusetune("export", run, "--weights", "0,0,1", "--form", "merged",
                          "--out", tmp_path / "theta0")  # fmt: skip
    assert code == 0, said
    found = load_file(tmp_path / "theta0/model.safetensors")
    for name, tensor in load_file(tiny_model / "model.safetensors").items():
        if not name.startswith("pooler"):
            assert torch.equal(found[f"bert.{name}"], tensor), name
    code, said = fusetune("export", run, "--weights", "0,0.5,0.5", "--form", "adapter",
                          "--out", tmp_path / "half")  # fmt: skip
    assert code == 0, said
    half = load_file(tmp_path / "half/adapter_model.safetensors")
    whole = load_file(tmp_path / "out/checkpoint-2/adapter_model.safetensors")
    key = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_{}.weight"
    product = half[key.format("B")] @ half[key.format("A")]
    expected = 0.5 * (8 / 2) * whole[key.format("B")] @ whole[key.format("A")]
    torch.testing.assert_close(product, expected)


def test_runs_that_one_pattern_finds_are_listed(
    tiny_model: Path, sentiment: Path, tmp_path: Path
) -> None:
    model = start(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    logged = {"a": [0.9, 0.8, 0.7], "b": [0.95, 0.85, 0.75]}
    for name, losses in logged.items():
        for step in (1, 2, 3):
            folder = tmp_path / name / f"checkpoint-{step}"
            moved(model, step).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            state_of_trainer(folder, losses[:step])
    given = ["--data", sentiment / "validation.jsonl", *ASKED]
    code, said = fusetune("fuse", "--members", f"{tmp_path}/*/checkpoint-*", *given)
    assert code == 2
    assert "finds checkpoints of 2 training runs" in said
    commands = [
        line[line.index("fusetune ") :] for line in said.splitlines() if " fuse " in line
    ]
    assert len(commands) == 3  # each run, and all of them
    for command, members in zip(commands, (3, 3, 6), strict=True):
        code, recipe = fusetune(*shlex.split(command)[1:], "--print-recipe")
        assert code == 0, recipe
        assert f"members: {members}" in recipe
    # One that an earlier run left in the folder, by its log.
    state_of_trainer(tmp_path / "a/checkpoint-1", [2.0])
    code, said = fusetune("fuse", "--members", f"{tmp_path}/a/checkpoint-*", *given)
    assert code == 2
    assert "finds checkpoints of 2 training runs" in said
    assert "alone: nothing to fuse" in said
    # The last ones of several trainings are meant to be fused.
    code, said = fusetune(
        "fuse", "--members", f"{tmp_path}/*/checkpoint-3", *given, "--print-recipe"
    )
    assert code == 0, said


def test_whole_state_dicts_of_fsdp_have_no_configuration(
    tiny_model: Path, sentiment: Path, tmp_path: Path
) -> None:
    for step in (1, 2):
        folder = tmp_path / f"out/checkpoint-{step}"
        folder.mkdir(parents=True)
        state = moved(start(tiny_model), step).state_dict()
        torch.save({"model": state}, folder / "pytorch_model_fsdp.bin")
    run = tmp_path / "run"
    data = sentiment / "validation.jsonl"
    given = ["fuse", "--members", f"{tmp_path}/out/*", "--data", data, *ASKED]
    given += ["--allow-pickle", "--out", run]
    code, said = fusetune(*given)
    assert code == 2
    assert "Give --kind" in said
    more = ["--kind", "sequence-classification", "--model", tiny_model, "--labels", "bad,good"]
    code, said = fusetune(*given, *more, "fuse.evaluations=6")
    assert code == 0, said
    fused = AutoModelForSequenceClassification.from_pretrained(run / "fused")
    assert fused.config.id2label == dict(enumerate(NAMES))
    weights = json.loads((run / "fused/fusion.json").read_text())["members"]
    files = [tmp_path / f"out/checkpoint-{s}/pytorch_model_fsdp.bin" for s in (1, 2)]
    name = "bert.encoder.layer.0.output.dense.weight"
    parts = [torch.load(file, weights_only=True)["model"][name] for file in files]
    wanted = sum(m["weight"] * part for m, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(fused.state_dict()[name], wanted, rtol=1e-5, atol=1e-6)
