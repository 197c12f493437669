"""Checkpoints that a plain Trainer left behind, fused by one command without a recipe."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import MemberError, RecipeError
from fusetune.members.pool import MemberPool
from fusetune.pipeline.asking import Wanted
from fusetune.pipeline.existing import open_recorded
from fusetune.pipeline.infer import infer
from fusetune.recipe_file import parse

NAMES = ("bad", "good")
ASKED = ("--text", "text", "--label", "label", "--metrics", "accuracy,macro_f1")


def fusetune(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def output(tiny_model: Path, sentiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a Trainer: five checkpoints with optimiser states."""
    folder = tmp_path_factory.mktemp("trainer") / "out"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model,
        id2label=dict(enumerate(NAMES)),
        label2id={n: i for i, n in enumerate(NAMES)},
    )
    rows = [json.loads(line) for line in (sentiment / "train.jsonl").open()]
    features = [{**tokenizer(row["text"]), "labels": NAMES.index(row["label"])} for row in rows]
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        max_steps=50,
        save_strategy="steps",
        save_steps=10,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
    )
    Trainer(model, arguments, train_dataset=features, processing_class=tokenizer).train()
    return folder


@pytest.fixture(scope="module")
def command(output: Path, sentiment: Path) -> list[str | Path]:
    data = sentiment / "validation.jsonl"
    return ["fuse", "--members", f"{output}/checkpoint-*", "--data", data, *ASKED]


def test_one_command_from_checkpoints_to_a_fused_model(
    command: list[str | Path], output: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, said = fusetune(*command, "--out", run)
    assert code == 0, said
    assert (
        "5 checkpoints of BertForSequenceClassification: checkpoint-10 to checkpoint-50" in said
    )
    assert "60 of 120 rows choose, the other 60 only report" in said
    results = json.loads((run / "results.json").read_text())
    rows = results["methods"]
    assert rows["mobo"]["evaluations"] == 30
    best = rows["finetune"]["validation"]["accuracy"]["value"]
    assert rows[results["chosen"]]["validation"]["accuracy"]["value"] >= best > 0.6
    fused = AutoModelForSequenceClassification.from_pretrained(run / "fused")
    assert fused.config.id2label == dict(enumerate(NAMES))
    # The members stayed where they are, and the model is their sum by the weights shown.
    assert not (run / "members").exists()
    fusion = json.loads((run / "fused" / "fusion.json").read_text())
    name = "bert.encoder.layer.1.output.dense.weight"
    wanted = sum(
        m["weight"] * load_file(output / m["name"] / "model.safetensors")[name]
        for m in fusion["members"]
    )
    torch.testing.assert_close(fused.state_dict()[name], wanted, rtol=1e-5, atol=1e-6)
    card = (run / "fused" / "README.md").read_text()
    assert "checkpoints of a fine-tuned model" in card
    assert "base_model" not in card
    # The recipe stands in the folder, and the same command again has nothing to do.
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["train"]["checkpoints"] == [f"{output}/checkpoint-*"]
    assert recipe["task"]["options"] == {"labels": ["bad", "good"]}
    before = (run / "results.json").read_bytes()
    code, said = fusetune(*command, "--out", run)
    assert code == 0
    assert "fuse: complete, nothing to do" in said
    assert (run / "results.json").read_bytes() == before
    assert fusetune("report", run)[0] == 0
    # What needs the members later finds them; what needs training rows says so.
    assert fusetune("export", run, "--method", "swa", "--out", tmp_path / "swa")[0] == 0
    code, said = fusetune("landscape", run, "--grid", "2", "--split", "train")
    assert code == 2
    assert "There is no train split; the data set has validation, test." in said
    # One more method joins the members that are on record.
    code, said = fusetune("fuse", run, "fuse.methods=[finetune,ema]", "--force")
    assert code == 0, said
    assert "ema" in json.loads((run / "stages" / "fuse.json").read_text())["methods"]


def test_members_says_what_to_type_next(output: Path) -> None:
    code, said = fusetune("members", output)
    assert code == 0
    line = next(line for line in said.splitlines() if line.startswith("fusetune fuse"))
    assert shlex.split(line)[2:4] == ["--members", f"{output}/checkpoint-*"]


def test_what_cannot_be_known_is_asked_for_at_once(command: list[str | Path]) -> None:
    code, said = fusetune(*command[:5])
    assert code == 2
    assert "5 checkpoints of BertForSequenceClassification" in said
    assert "labels bad, good" in said
    assert "--text: one or two columns" in said
    assert "--metrics: one or more" in said
    assert "matthews_correlation" in said
    assert "The data has the columns text, label." in said
    assert "--label:" not in said  # the data have a column of that name
    code, said = fusetune(*command[:3])
    assert code == 2
    assert "--data: a file with labelled rows" in said


def test_data_that_cannot_be_taken(
    command: list[str | Path], sentiment: Path, tmp_path: Path
) -> None:
    file = sentiment / "validation.jsonl"
    for given, message in {
        ("--data", str(tmp_path / "none.jsonl")): "none.jsonl does not exist",
        ("--data", str(file), "--test", str(file)): "rows that choose cannot report",
        ("--data", str(sentiment), "--test", str(file)): "--test goes with one file",
        (
            "--data",
            str(file),
            "--label",
            "lable",
        ): "--label: the column of the labels, not 'lable'",
    }.items():
        code, said = fusetune(*command[:3], *given, "--text", "text", "--metrics", "accuracy")
        assert code == 2
        assert message in said


def test_labels_by_number_and_labels_unknown(
    output: Path, sentiment: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (sentiment / "validation.jsonl").open()]
    found = {}
    for name, labels in {"ids": (0, 1), "strange": ("minus", "plus"), "more": (0, 2)}.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text(
            "\n".join(
                json.dumps({**row, "label": labels[NAMES.index(row["label"])]}) for row in rows
            )
        )
        found[name] = Wanted(
            (f"{output}/checkpoint-*",), str(file), None, ("text",), None, ("f1",)
        )
    assert infer(found["ids"]).recipe.task.options["labels"] == ["0", "1"]
    for name, there in {"strange": "minus, plus", "more": "0, 2"}.items():
        with pytest.raises(RecipeError, match=f"--labels: .* 2 class ids .* has {there}"):
            infer(found[name])


def test_checkpoints_of_two_kinds_are_listed_by_group(
    command: list[str | Path], output: Path, tmp_path: Path
) -> None:
    for step in (10, 20, 30):
        shutil.copytree(output / f"checkpoint-{step}", tmp_path / "a" / f"checkpoint-{step}")
    for step in (10, 20):
        other = tmp_path / "b" / f"checkpoint-{step}"
        shutil.copytree(output / f"checkpoint-{step}", other)
        tensors = load_file(other / "model.safetensors")
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
        save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    code, said = fusetune("fuse", "--members", f"{tmp_path}/*/checkpoint-*", *command[3:])
    assert code == 2
    assert "These 5 checkpoints are of 2 kinds" in said
    commands = [line for line in said.splitlines() if "fusetune fuse" in line]
    found = []
    for line in commands:
        code, recipe = fusetune(*shlex.split(line)[1:], "--print-recipe")
        assert code == 0, recipe
        found.append(yaml.safe_load(recipe)["train"])
    assert [train["members"] for train in found] == [3, 2]
    assert [Path(train["checkpoints"][0]).parent.name for train in found] == ["a", "b"]


def test_bad_members_are_refused(
    command: list[str | Path], output: Path, tmp_path: Path
) -> None:
    for step in (1, 2):
        folder = tmp_path / "pickled" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
        shutil.copy(output / "checkpoint-10" / "config.json", folder)
    for members, message in {
        f"{tmp_path}/pickled/*": "holds only pickled weights",
        f"{output}/checkpoint-1?": "at least two checkpoints; found one",
        f"{tmp_path}/nothing-*": "No checkpoint in",
    }.items():
        code, said = fusetune("fuse", "--members", members, *command[3:])
        assert code == 2
        assert message in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fuse"], "needs a recipe or run folder, or --members"),
        (["fuse", "rte-minilm", "--data", "x.jsonl"], "go with --members"),
        (["fuse", "rte-minilm", "--members", "x"], "takes the place of a recipe or run folder"),
        (["fuse", "out/checkpoint-2", "--members", "out/checkpoint-1"], "quote that"),
    ],
)
def test_a_recipe_or_members(arguments: list[str], message: str) -> None:
    code, said = fusetune(*arguments)
    assert code == 2
    assert message in " ".join(said.split())


def test_methods_that_need_more_than_members_are_refused_first(
    command: list[str | Path], sentiment: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, said = fusetune(*command, "--out", run, "fuse.methods=[swa,twa]")
    assert code == 2
    assert "twa need training rows" in said
    assert not (run / "stages").exists()
    code, said = fusetune(*command, "--out", run, "fuse.methods=[model_stock]")
    assert code == 2
    assert "model_stock needs the model that the training began with" in said
    folder = [*command[:3], "--data", sentiment, *ASKED]  # with its train split
    code, said = fusetune(*folder, "--out", run, "fuse.methods=[swa,fisher]")
    assert code == 0, said


def test_a_member_that_has_changed_is_noticed(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output / "checkpoint-10", tmp_path / "checkpoint-10")
    paths = [tmp_path / "checkpoint-10", output / "checkpoint-20"]
    pool = MemberPool.open(paths)
    record = {"paths": [str(p) for p in paths], "sha256": [m.sha256 for m in pool.members]}
    assert open_recorded(record).fingerprint == pool.fingerprint
    file = tmp_path / "checkpoint-10" / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.bias"] += 1.0
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(MemberError, match="are not those that this run began with"):
        open_recorded(record)
    shutil.rmtree(file.parent)
    with pytest.raises(MemberError, match="checkpoint-10, a member of this run, is gone"):
        open_recorded(record)


def test_adapters_with_their_base(tiny_model: Path, sentiment: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
        config = peft.LoraConfig(
            r=4, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS"
        )
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1 * step)
        adapted.save_pretrained(tmp_path / f"checkpoint-{step}")
    data = sentiment / "validation.jsonl"
    pattern = f"{tmp_path}/checkpoint-*"
    given = ["fuse", "--members", pattern, "--data", str(data), *ASKED]
    code, said = fusetune(*given)
    assert code == 2
    assert "--labels: the names of the model's 2 class ids" in said
    run = tmp_path / "run"
    code, said = fusetune(*given, "--labels", "bad,good", "--out", run, "fuse.export=adapter")
    assert code == 0, said
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["model"]["name"] == str(tiny_model)
    assert recipe["model"]["lora"]["rank"] == 4
    assert recipe["model"]["lora"]["alpha"] == 16
    assert (run / "fused" / "adapter_model.safetensors").is_file()


def test_adapters_keep_their_own_tokenizer(
    tiny_model: Path, sentiment: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "Q: {{ messages[0]['content'] }}"
    tokenizer.pad_token = tokenizer.unk_token
    for step in (1, 2):
        model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
        config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1 * step)
        adapted.save_pretrained(tmp_path / "out" / f"checkpoint-{step}")
        tokenizer.save_pretrained(tmp_path / "out" / f"checkpoint-{step}")
    members = ["--members", f"{tmp_path}/out/checkpoint-*", "--labels", "bad,good"]
    run, other = tmp_path / "run", tmp_path / "other"
    data = sentiment / "validation.jsonl"
    code, said = fusetune(
        "fuse", *members, "--data", data, *ASKED, "--out", run, "fuse.evaluations=6"
    )
    assert code == 0, said
    code, said = fusetune("export", run, "--out", other)
    assert code == 0, said
    for folder in (run / "fused", other):
        found = AutoTokenizer.from_pretrained(folder)
        assert found.chat_template == tokenizer.chat_template
        assert found.pad_token == tokenizer.pad_token
    files = [
        {f.name: f.read_bytes() for f in folder.iterdir()} for folder in (run / "fused", other)
    ]
    for own in files:
        own.pop("README.md")  # a run's card has its results
    assert files[0] == files[1]


def test_generation_and_what_it_asks(sentiment: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    for step in (1, 2):
        LlamaForCausalLM(config).save_pretrained(tmp_path / f"checkpoint-{step}")
    data = str(sentiment / "test.jsonl")
    given = Wanted((f"{tmp_path}/checkpoint-*",), data)
    with pytest.raises(RecipeError) as error:
        infer(given)
    for line in ("--prompt:", "'{{ text }}'", "--reference:", "rougeL", "--model:"):
        assert line in str(error.value)
    found = infer(
        Wanted(
            (f"{tmp_path}/checkpoint-*",),
            data,
            metrics=("exact_match",),
            prompt="{{ text }}",
            reference="label",
            model=str(tiny_model),
        ),
        ["seed=7"],
    )
    assert found.recipe.task.kind == "generation"
    assert (found.recipe.seed, found.recipe.fuse.evaluations) == (7, 12)


def test_a_recipe_with_checkpoints_trains_nothing(tiny_recipe: str) -> None:
    with pytest.raises(
        RecipeError, match=r"search\.trials has no meaning; set it to 0"
    ) as error:
        parse(tiny_recipe, ["train.checkpoints=out/checkpoint-*"])
    assert "search.variant" in str(error.value)
    assert "train.arguments" in str(error.value)
