"""The golden runs: each takes an empty folder and returns the outcome that is pinned.

They are float32 on one thread. `adam_epsilon` is large, as Adam divides a gradient by its own
size: where that is rounding noise, another processor's noise would turn the step around.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)
from typer.testing import CliRunner

import fusetune
from fusetune.cli import app
from fusetune.pipeline import run
from fusetune.recipe_file import parse
from tests import tiny

Outcome = dict[str, Any]

# Of results.json: what was measured with a clock; prose, which may be reworded; and rank
# correlations over the evaluated w, which jump where two of them are all but equal.
CLOCK = {"seconds", "total_seconds", "cost"}
PROSE = {"fusetune", "notes", "about"}
UNPINNED = CLOCK | PROSE | {"discrepancy"}
TRAINING = (
    "arguments: {learning_rate: 1.0e-2, per_device_train_batch_size: 16, adam_epsilon: 1.0e-5}"
)
LORA = "lora: {rank: 4, alpha: 16, target_modules: all-linear}"


# -- the runs


def classification(folder: Path) -> Outcome:
    """A search over λ with light trials, all rules of choice."""
    return _finished(
        folder,
        tiny.sentiment,
        "text: [text], label: label, metrics: [accuracy, matthews_correlation]",
        search="""
  trials: 3
  objective: best_member
  variant: {freeze_layers: 1}
  epochs: 1
  space:
    learning_rate: {low: 3.0e-3, high: 2.0e-2, log: true}
    weight_decay: {low: 0.0, high: 0.1}
    per_device_train_batch_size: {choices: [8, 16]}""",
        training="arguments: {adam_epsilon: 1.0e-5}",
        methods="finetune, swa, greedy, ema, learned, bo, mobo",
    )


def regression(folder: Path) -> Outcome:
    """A number as label, one correlation as metric."""
    return _finished(
        folder,
        tiny.rating,
        "kind: regression, text: [text], label: score, metrics: [pearson, spearman]",
        training=TRAINING.replace("1.0e-2", "5.0e-3"),
    )


def generation(folder: Path) -> Outcome:
    """Texts from adapters on a decoder, whose base is merged at the end."""
    return _finished(
        folder,
        tiny.slots,
        """kind: generation, prompt: "{{ mr }}", reference: ref, metrics: [rougeL, exact_match],
        options: {group_references: false, generation: {max_new_tokens: 16}}""",
        model=LORA,
        training=TRAINING,
        methods="finetune, swa, mobo",
    )


def choice(folder: Path) -> Outcome:
    """Multiple choice by log p of letters, with a light trial of lower rank."""
    return _finished(
        folder,
        tiny.place,
        f"""kind: multiple-choice, prompt: "{tiny.PLACE_PROMPT}", reference: answer,
        metrics: [accuracy], options: {{choices: [a, b, c], letters: true}}""",
        model=LORA,
        search="""
  trials: 2
  objective: best_member
  variant: {lora_rank: 2}
  epochs: 1
  space: {learning_rate: {low: 3.0e-3, high: 2.0e-2, log: true}}""",
        training="arguments: {adam_epsilon: 1.0e-5, per_device_train_batch_size: 16}",
        methods="finetune, swa, mobo",
    )


def spans(folder: Path) -> Outcome:
    """Answers in contexts that are longer than the model reads at once."""
    return _finished(
        folder,
        tiny.span,
        """kind: span-question-answering, text: [q, c], label: answers,
        metrics: [f1, exact_match], options: {stride: 6, most_tokens: 3}""",
        model="max_length: 24",
        training=TRAINING.replace("1.0e-2", "1.5e-3"),
    )


def finished(folder: Path) -> Outcome:
    """The checkpoints of a plain Trainer, fused by one command without a recipe."""
    model, data = _sentiment(folder)
    _train(model, data, folder / "out")
    out = folder / "run"
    _command(
        *("fuse", "--members", f"{folder}/out/checkpoint-*", "--out", str(out)),
        *("--data", str(data / "validation.jsonl"), "--text", "text", "--label", "label"),
        *("--metrics", "accuracy,macro_f1", "fuse.evaluations=10", "model.device=cpu"),
    )
    return outcome(out)


def library(folder: Path) -> Outcome:
    """`fusetune.fuse` with a function of a model: members θ_i, loss |θ̄(w) − target|²."""
    target = torch.tensor([0.5, 0.3, 0.2])
    model = nn.Linear(3, 1, bias=False)
    collector = fusetune.MemberCollector(
        folder / "members", members=3, collect_from=0.0, total_steps=3
    )
    for step in range(3):
        with torch.no_grad():
            model.weight.copy_(torch.eye(3)[step])
        collector.step(model)

    def evaluate(model: nn.Module) -> dict[str, float]:
        loss = (model.get_parameter("weight").detach()[0] - target).square().sum()
        return {"loss": float(loss), "score": 1.0 - float(loss.sqrt())}

    result = fusetune.fuse(
        folder / "members",
        evaluate=evaluate,
        objectives=["loss", "score:maximize"],
        model_init=lambda: nn.Linear(3, 1, bias=False),
        budget=16,
        folder=folder / "run",
    )
    return {
        "methods": {
            name: {"weights": list(c.weights.values), "values": dict(c.values)}
            for name, c in result.methods.items()
        },
        "chosen": {"weights": list(result.weights.values), "values": dict(result.values)},
        "front": [list(c.weights.values) for c in result.front],
        "fused": _tensors(result.save(folder / "fused")),
        "studies": _studies(next((folder / "run").glob("*.journal"))),
    }


def compare(folder: Path) -> Outcome:
    """Rows with a training of their own and without, over two seeds."""
    model, data = _sentiment(folder, train=96, validation=40, test=40)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        _recipe(
            model, data, "text: [text], label: label, metrics: [accuracy]", methods="swa"
        ).replace("epochs: 4", "epochs: 2")
    )
    out = folder / "compare"
    _command(
        *("compare", str(recipe), "--out", str(out), "--seeds", "41,42"),
        *("--methods", "finetune,swa,greedy,swa_cyclic"),
    )
    return _pinned(json.loads((out / "comparison.json").read_text()))


RUNS: dict[str, Callable[[Path], Outcome]] = {
    made.__name__: made
    for made in (
        *(classification, regression, generation, choice, spans),
        *(finished, library, compare),
    )
}


# -- what they share


def outcome(path: Path) -> Outcome:
    """What is pinned of a run folder: results, the fused model, the trials of its studies."""
    return {
        "results": _pinned(json.loads((path / "results.json").read_text())),
        "fused": _tensors(path / "fused"),
        "studies": _studies(path / "trials.journal"),
    }


def _finished(folder: Path, row: Callable[..., Any], task: str, **parts: str) -> Outcome:
    data = tiny.save_rows(folder / "data", row, train=160, validation=60, test=60)
    texts = (data / "train.jsonl").read_text().splitlines()
    adapters = "lora" in parts.get("model", "")
    model = folder / "model"
    tiny.save_llama(model, texts) if adapters else tiny.save_bert(model)
    return outcome(run(parse(_recipe(model, data, task, **parts)), folder / "run").path)


def _recipe(
    name: Path,
    data: Path,
    task: str,
    *,
    model: str = "max_length: 32",
    search: str = " {trials: 0}",
    training: str = TRAINING,
    methods: str = "finetune, swa, greedy, mobo",
) -> str:
    return f"""
seed: 41
task: {{data: {data}, name: golden, {task}}}
model: {{name: {name}, precision: float32, device: cpu, {model}}}
search:{search}
train:
  epochs: 4
  members: 4
  collect_from: 0.5
  {training}
fuse:
  evaluations: 12
  methods: [{methods}]
"""


def _sentiment(folder: Path, **sizes: int) -> tuple[Path, Path]:
    sizes = sizes or {"train": 160, "validation": 120}
    data = tiny.save_rows(folder / "data", tiny.sentiment, **sizes)
    return tiny.save_bert(folder / "model"), data


def _train(pretrained: Path, data: Path, out: Path) -> None:
    names = ("bad", "good")
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        pretrained,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    rows = [json.loads(line) for line in (data / "train.jsonl").open()]
    features = [{**tokenizer(row["text"]), "labels": names.index(row["label"])} for row in rows]
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        adam_epsilon=1e-5,
        max_steps=48,
        save_strategy="steps",
        save_steps=12,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
    )
    Trainer(model, arguments, train_dataset=features, processing_class=tokenizer).train()


def _command(*arguments: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def _pinned(results: Any) -> Any:
    if isinstance(results, dict):
        return {k: _pinned(v) for k, v in results.items() if k not in UNPINNED}
    return [_pinned(v) for v in results] if isinstance(results, list) else results


def _tensors(folder: Path) -> dict[str, list[float]]:
    """Per tensor its norm, its mean and its product with a wave, which sees the order."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            values = tensor.double().flatten().numpy()
            wave = np.cos(np.arange(len(values)))
            statistics = (np.linalg.norm(values), values.mean(), values @ wave)
            found[name] = [float(value) for value in statistics]
    return found


def _studies(journal: Path) -> dict[str, list[Any]]:
    """Of every trial: how it ended, its parameters and its values."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return {
        name: [
            [trial.state.name, trial.params, trial.values]
            for trial in optuna.load_study(study_name=name, storage=storage).trials
        ]
        for name in sorted(_names(storage))
    }


def _names(storage: JournalStorage) -> Iterable[str]:
    return optuna.get_all_study_names(storage)
