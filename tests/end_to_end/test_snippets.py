"""Every command and piece of code in the README and the documentation does what it shows.

They run in a folder that has what a reader would have: data, checkpoints, a recipe. What takes
long there is small here: `SMALL` is added to commands that train, `SHORTER` replaces lists.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
import yaml
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
from fusetune.recipe_file import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
NAMES = ("bad", "good")
SMALL = (
    "model.device=cpu",
    "model.precision=float32",
    "search.trials=2",
    "search.epochs=1",
    "search.variant={freeze_layers: 1}",
    "search.space={learning_rate: {low: 0.001, high: 0.01}}",
    "train.epochs=2",
    "train.members=3",
    "train.arguments={per_device_train_batch_size: 32}",
    "fuse.evaluations=7",
    "compare.learning_rates=[0.001, 0.003]",
)
REPLACED = {
    "max f1": "max accuracy",
    "loss <= 0.5,": "loss <= 9.5,",
    "RUN/front/point-03.yaml": "RUN/front/point-01.yaml",
    "RUN": "runs/rte",
    "FacebookAI/roberta-base": "pretrained",
}
"""What the run of the tests calls otherwise."""
ELSEWHERE = {
    "fusetune demo": "the longest of all; `make demo` runs it",
    "fusetune dashboard": "end_to_end/test_dashboard.py",
    "fusetune push RUN user/name --private": "end_to_end/test_push.py",
    "mergekit-yaml": "end_to_end/test_exchange.py",
    "fusetune fuse --members out/checkpoint-* --kind lm-eval": "end_to_end/test_lm_eval_run.py",
}
"""Commands that need a network, a package or a browser, and what runs them instead."""
OTHER_TESTS = {
    "docs/integrations.md": "tests/test_examples.py",  # of the scripts that it shows
    "docs/generation.md": "tests/test_docs.py",
}
"""Pages whose Python other tests run."""
FOR_CLUSTERS = ("docs/scaling.md",)
SHORTER = {
    "--methods all --seeds 41,42,43,44": "--methods grid,finetune,swa,mobo --seeds 41,42",
    "--trials 8": "--trials 2",
    "--grid 31": "--grid 4",
}


class Snippet(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str


def snippets(page: str) -> list[Snippet]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [Snippet(language, body) for language, body in found]


def commands(text: str) -> list[list[str]]:
    """The lines of a shell block, as words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_trainer(tiny_model: Path, sentiment: Path, folder: Path, **more: Any) -> Trainer:
    """A reader's own Trainer; keyword arguments of both `Trainer` and its arguments."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model,
        id2label=dict(enumerate(NAMES)),
        label2id={n: i for i, n in enumerate(NAMES)},
    )
    callbacks = more.pop("callbacks", None)
    splits = {
        split: [
            {**tokenizer(row["text"]), "labels": NAMES.index(row["label"])}
            for row in read(sentiment / f"{split}.jsonl")
        ]
        for split in ("train", "validation")
    }
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        max_steps=60,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        **{"save_strategy": "steps" if "save_steps" in more else "no", **more},
    )
    return Trainer(
        model,
        arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        compute_metrics=lambda p: {
            "f1": float((p.predictions.argmax(-1) == p.label_ids).mean())
        },
        callbacks=callbacks,
    )


@pytest.fixture(scope="module")
def trainer_output(
    tiny_model: Path, sentiment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """out/ of a Trainer, with three checkpoints."""
    folder = tmp_path_factory.mktemp("stock") / "out"
    make_trainer(tiny_model, sentiment, folder, save_steps=20).train()
    return folder


@pytest.fixture
def desk(
    tiny_model: Path,
    sentiment: Path,
    trainer_output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The folder a reader works in; ../shared/data beside it holds a data set."""
    folder = tmp_path / "desk"
    shutil.copytree(trainer_output, folder / "out")
    shutil.copytree(tiny_model, folder / "pretrained")
    for split in ("train", "validation", "test"):
        rows = read(sentiment / f"{split}.jsonl")
        mine = [{"question": r["text"], "answer": "a film", "label": r["label"]} for r in rows]
        write(folder / "my-data" / f"{split}.jsonl", mine)
        cola = [{"sentence": r["text"], "label": NAMES.index(r["label"])} for r in rows]
        write(tmp_path / "shared" / "data" / "cola" / f"{split}.jsonl", cola)
    rows = read(sentiment / "validation.jsonl")
    write(
        folder / "val.jsonl",
        [{**r, "question": r["text"], "context": "a film", "answer": "bright"} for r in rows],
    )
    text = next(s.text for s in snippets("docs/index.md") if s.language == "yaml")
    recipe = yaml.safe_load(text)
    recipe["model"]["name"] = str(tiny_model)
    (folder / "my-recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(folder)
    return folder


def fusetune(words: list[str], *more: str) -> None:
    result = CliRunner().invoke(app, [*words[1:], *more])
    assert result.exit_code == 0, (words, result.output, result.exception)


def small(words: list[str], tiny_model: Path) -> list[str]:
    """What makes a command that trains from a recipe a matter of seconds."""
    trains = words[1] in ("run", "compare", "transfer", "search", "train")
    resumes = len(words) > 2 and Path(words[2]).is_dir()
    return [*SMALL, f"model.name={tiny_model}"] if trains and not resumes else []


def replaced(word: str) -> str:
    for name, other in REPLACED.items():
        word = word.replace(name, other)
    return word


def shell(text: str, tiny_model: Path) -> None:
    """A block of commands: ours are run; of others it is checked that they name what exists."""
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    members = sorted(p.name for p in Path("runs/rte/members").glob("step-*"))
    text = re.sub(r"step-\d+(,step-\d+){2}", ",".join(members[:3]), text)
    for words in commands(text):
        if any(" ".join(words).startswith(known) for known in ELSEWHERE):
            continue
        words = [replaced(word) for word in words]
        if words[0] == "fusetune":
            fusetune(words, *small(words, tiny_model))
        elif words[0] == "make":
            makefile = (ROOT / "Makefile").read_text()
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        elif words[:2] == ["pip", "install"]:
            extras = re.search(r"fusetune\[(.+)\]", words[-1])
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            named = set(extras[1].split(",")) if extras else set()
            assert named <= project["optional-dependencies"].keys(), words
        elif words[:2] == ["python", "-m"]:
            assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file(), words
        else:
            pytest.fail(f"nothing is known of how to try {words}")


def options_exist(text: str) -> None:
    """Commands for machines that are not here: ours have the options that are shown."""
    for words in commands(text):
        if "fusetune" not in words:
            continue
        command, *rest = words[words.index("fusetune") + 1 :]  # behind its launcher, if any
        said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        for option in (word for word in rest if word.startswith("--")):
            assert option in said, words


def recipe_part(text: str, tiny_model: Path) -> None:
    """A piece of a recipe, with what every recipe needs, is valid."""
    found = yaml.safe_load(text)
    if "apiVersion" in found:  # of Kubernetes
        return
    whole = {
        "task": {"data": "my-data", "text": ["question"], "metrics": ["accuracy"]},
        "model": {"name": str(tiny_model)},
        "search": {"space": {"learning_rate": {"low": 0.001, "high": 0.01}}},
    }
    search = {**whole["search"], **found.get("search", {})}
    parse(yaml.safe_dump({**whole, **found, "search": search}))


def a_run(tiny_model: Path, sentiment: Path, desk: Path) -> dict[str, Any]:
    """runs/rte, a run that is finished, with members at the steps that the page names."""
    out = "runs/rte"
    fusetune(
        ["fusetune", "run", "my-recipe.yaml", "--out", out, *SMALL, f"model.name={tiny_model}"]
    )
    return {}


def a_trainer(tiny_model: Path, sentiment: Path, desk: Path) -> dict[str, Any]:
    """`Trainer(..., callbacks=[…])` of the pages: the dots are a model, arguments and data."""
    return {"Trainer": lambda _, **more: make_trainer(tiny_model, sentiment, desk, **more)}


def own_training(tiny_model: Path, sentiment: Path, desk: Path) -> dict[str, Any]:
    """What the page takes for granted: a Trainer, validation batches, a loop."""
    trainer = make_trainer(tiny_model, sentiment, desk / "own")
    batches = [
        {name: tensor.cpu() for name, tensor in batch.items()}
        for batch in trainer.get_eval_dataloader()
    ]
    model = torch.nn.Linear(3, 2)
    return {
        "trainer": trainer,
        "tokenizer": trainer.processing_class,
        "validation": batches,
        "epochs": 2,
        "loader": range(20),
        "batches": range(40),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }


def tiny_writer(tiny_model: Path, folder: Path) -> LlamaForCausalLM:
    """A causal model of one layer with the tiny model's tokenizer, written to `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.eos_token = "[SEP]"
    tokenizer.model_max_length = 256
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=256,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def a_writer(tiny_model: Path, sentiment: Path, desk: Path) -> dict[str, Any]:
    """writer/checkpoint-*, of a causal model; and a val.jsonl with fewer rows."""
    for step in (1, 2):
        torch.manual_seed(step)
        tiny_writer(tiny_model, desk / "writer" / f"checkpoint-{step}")
    write(desk / "val.jsonl", read(desk / "val.jsonl")[:40])
    return {}


def own_adapters(tiny_model: Path, sentiment: Path, desk: Path) -> dict[str, Any]:
    """my-base, and adapters of it as out/checkpoint-*."""
    shutil.rmtree(desk / "out")
    for step in (1, 2):
        torch.manual_seed(0)
        model = peft.get_peft_model(
            tiny_writer(tiny_model, desk / "my-base"),
            peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        torch.manual_seed(step)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(desk / "out" / f"checkpoint-{step}")
    return {}


PREPARE: Mapping[str, Callable[[Path, Path, Path], Mapping[str, Any]]] = {
    "README.md": a_trainer,
    "docs/index.md": a_trainer,
    "docs/report.md": a_run,
    "docs/exchange.md": a_run,
    "docs/finished.md": a_writer,
    "docs/library.md": own_training,
    "docs/lora.md": own_adapters,
}


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, desk: Path, tiny_model: Path, sentiment: Path) -> None:
    prepare = PREPARE.get(page)
    names = dict(prepare(tiny_model, sentiment, desk)) if prepare else {}
    for language, text in snippets(page):
        if language == "bash" and page in FOR_CLUSTERS:
            options_exist(text)
        elif language == "bash":
            shell(text, tiny_model)
        elif language == "yaml":
            recipe_part(text, tiny_model)
        elif language == "json":
            json.loads(text)
        elif language == "python" and page not in OTHER_TESTS:
            exec(compile(text, page, "exec"), names)
