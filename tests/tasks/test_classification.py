from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fusetune.errors import DataError, RecipeError
from fusetune.tasks.classification import Regression, SequenceClassification
from fusetune.tasks.splitting import Splitting
from fusetune.tasks.task import Outputs, Task

Write = Callable[..., str]
TEXTS = ["w1 w2", "w3", "w4 w5 w6"]


def classification(data: str | dict[str, str], **arguments: Any) -> SequenceClassification:
    defaults = {"text": ["text"], "label": "label", "metrics": ["accuracy"]}
    return SequenceClassification("test", data, **{**defaults, **arguments})


def regression(data: str, **arguments: Any) -> Regression:
    defaults = {"text": ["text"], "label": "label", "metrics": ["pearson"]}
    return Regression("test", data, **{**defaults, **arguments})


def names_of(task: SequenceClassification, model: str) -> tuple[str, ...]:
    """What the model that is trained on the task calls its classes."""
    built = task.build(model, ignore_mismatched_sizes=True)
    return tuple(built.config.id2label.values())


def columns(labels: list[Any], texts: list[Any] = TEXTS) -> dict[str, list[Any]]:
    return {"text": texts[: len(labels)], "label": labels}


def three(labels: list[Any]) -> dict[str, dict[str, list[Any]]]:
    return {name: columns(labels) for name in ("train", "validation", "test")}


# ---------------------------------------------------------------- labels


def test_given_labels_take_the_place_of_those_of_train(folder: Write, tiny_bert: str) -> None:
    data = {name: columns(["yes", "no", "no"]) for name in ("validation", "test")}
    splitting = Splitting(trains=False)
    task = classification(folder(**data), labels=["yes", "maybe", "no"], splitting=splitting)
    assert names_of(task, tiny_bert) == ("yes", "maybe", "no")
    assert list(task.splits) == ["validation", "test"]
    assert task.splits["test"].labels.tolist() == [0, 2, 2]
    with pytest.raises(DataError, match=r"labels that the model lacks: 'no'.*labels has 'yes'"):
        _ = classification(folder(**data), labels=["yes", "on"], splitting=splitting).splits
    with pytest.raises(DataError, match=r"Without a train split .*task\.options\.labels"):
        _ = classification(folder(**data), splitting=splitting).splits
    with pytest.raises(RecipeError, match="two or more different names"):
        classification(folder(**data), labels=["yes", "yes"])


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        ([10, 2, 2], ("2", "10"), [1, 0, 0]),
        (["yes", "no", "no"], ("no", "yes"), [1, 0, 0]),
        (["10", "9", "9"], ("9", "10"), [1, 0, 0]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        ([1.0, 0.0, 0.0], ("0", "1"), [1, 0, 0]),
        ([1, -1, -1], ("-1", "1"), [1, 0, 0]),
        (["b", "a", "c"], ("a", "b", "c"), [1, 0, 2]),
    ],
)
def test_labels_become_sorted_class_ids(
    folder: Write, tiny_bert: str, labels: list[Any], names: tuple[str, ...], ids: list[int]
) -> None:
    task = classification(folder(**three(labels)))
    assert names_of(task, tiny_bert) == names
    assert task.splits["train"].labels.tolist() == ids
    assert task.splits["train"].labels.dtype == np.int64


def test_a_class_label_keeps_its_names_and_order(tmp_path: Path, tiny_bert: str) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])}
    )
    rows = datasets.Dataset.from_dict(columns([1, 0, 1]), features=features)
    for name in ("train", "validation", "test"):
        rows.to_parquet(str(tmp_path / f"{name}.parquet"))
    task = classification(str(tmp_path))
    assert names_of(task, tiny_bert) == ("yes", "no")
    assert task.splits["test"].labels.tolist() == [1, 0, 1]


def test_integers_in_one_format_are_strings_in_another(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(
        "".join(
            json.dumps({"text": t, "label": v}) + "\n"
            for t, v in zip(TEXTS, "120", strict=True)
        )
    )
    (tmp_path / "dev.csv").write_text("text,label\nw1,1\nw2,0\n")
    (tmp_path / "test.csv").write_text("text,label\nw1,2\nw2,0\n")
    task = classification(str(tmp_path))
    assert task.splits["validation"].labels.tolist() == [1, 0]


def test_the_fingerprint_is_that_of_the_rows(tmp_path: Path) -> None:
    table = pa.table({"text": ['a "b", c', "12", "é"], "label": [1, 0, 1]})
    lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    for name in ("train", "validation", "test"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.jsonl").write_text(lines)
        (tmp_path / f"{name}.csv").write_text('text,label\n"a ""b"", c",1\n12,0\né,1\n')

    def fingerprint(extension: str) -> str:
        files = {name: f"{name}.{extension}" for name in ("train", "validation", "test")}
        return classification(files, base=tmp_path).splits["train"].fingerprint

    assert fingerprint("parquet") == fingerprint("jsonl") == fingerprint("csv")
    changed = table.set_column(1, "label", pa.array([1, 0, 0]))
    pq.write_table(changed, tmp_path / "train.parquet")
    assert fingerprint("parquet") != fingerprint("jsonl")


# ---------------------------------------------------------------- model, loss, batches


@pytest.mark.parametrize("labels", [["a", "b", "c"], ["a", "b", "a"]])
def test_losses_are_the_models_own(
    folder: Write, tiny_bert: str, tokenizer: PreTrainedTokenizerFast, labels: list[str]
) -> None:
    task: Task = classification(folder(**three(labels)))
    model = task.build(tiny_bert, ignore_mismatched_sizes=True).eval()
    assert model.config.id2label == dict(enumerate(sorted(set(labels))))
    assert model.config.label2id[labels[1]] == 1
    encoded = task.encode("train", tokenizer, None)
    batch = task.collate(tokenizer)([encoded[i] for i in range(3)])
    outputs = task.outputs(model, batch)
    assert outputs.predictions.shape == (3, len(set(labels)))
    assert outputs.loss.dtype == outputs.predictions.dtype == np.float32
    assert outputs.loss.mean() == pytest.approx(model(**batch).loss.item(), abs=1e-6)
    assert task.score(outputs, encoded.labels)["loss"] == pytest.approx(outputs.loss.mean())


def test_squared_errors_are_the_models_own(
    folder: Write, tiny_bert: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    task: Task = regression(folder(**three([0.5, 5.0, 2.25])))
    model = task.build(tiny_bert, ignore_mismatched_sizes=True).eval()
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    encoded = task.encode("validation", tokenizer, None)
    assert encoded.labels.tolist() == [0.5, 5.0, 2.25]
    batch = task.collate(tokenizer)([encoded[i] for i in range(3)])
    outputs = task.outputs(model, batch)
    assert outputs.predictions.shape == (3, 1)
    assert outputs.loss.mean() == pytest.approx(model(**batch).loss.item(), rel=1e-6)


def test_loss_is_the_models_own_with_its_gradient(
    folder: Write, tiny_bert: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    task: Task = classification(folder(**three(["a", "b", "b"])))
    model = task.build(tiny_bert).eval()
    encoded = task.encode("train", tokenizer, None)
    batch = task.collate(tokenizer)([encoded[i] for i in range(3)])
    gradients = []
    for loss in (task.loss(model, batch), model(**batch).loss):
        model.zero_grad()
        loss.backward()
        gradients.append(model.classifier.weight.grad.clone())
    assert float(task.loss(model, batch)) == pytest.approx(float(loss))
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_many_models_are_scored_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    names = ["accuracy", "f1", "macro_f1", "matthews_correlation"]
    number = rng.normal(size=(6, 20, 1)).astype(np.float32)
    tasks = (classification("unused", metrics=names), regression("unused"))
    predictions = (rng.normal(size=(6, 20, 2)).astype(np.float32), number)
    labels = (rng.integers(0, 2, 20), rng.normal(size=20))
    for task, z, y in zip(tasks, predictions, labels, strict=True):
        together = task.score_many(z, y)
        for i in range(6):
            loss = task.losses(torch.from_numpy(z[i]), torch.from_numpy(y)).numpy()
            alone = task.score(Outputs(loss, z[i]), y)
            assert {n: v[i] for n, v in together.items()} == pytest.approx(alone, rel=1e-6)


def test_logits_of_half_precision_give_float32_losses(folder: Write) -> None:
    task = classification(folder(**three(["a", "b", "b"])))
    logits = torch.tensor([[2.0, -1.0]], dtype=torch.bfloat16)

    class Model(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> Any:
            return type("Output", (), {"logits": logits})

    batch = {"input_ids": torch.zeros(1, 4), "labels": torch.tensor([1])}
    outputs = task.outputs(Model(), batch)
    assert outputs.loss == pytest.approx([np.log1p(np.exp(3.0))], rel=1e-6)


def test_batches_are_padded_to_a_multiple_of_eight(
    folder: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    task = classification(folder(**three(["a", "b", "b"])))
    encoded = task.encode("train", tokenizer, None)
    assert encoded.lengths.tolist() == [4, 3, 5]
    assert encoded[0]["input_ids"] == [2, 5, 6, 3]
    batch = pickle.loads(pickle.dumps(task.collate(tokenizer)))([encoded[0], encoded[2]])
    assert type(batch) is dict
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 8)
    assert batch["attention_mask"].sum(1).tolist() == [4, 5]
    assert batch["labels"].tolist() == [0, 1]


def test_a_pair_is_one_input(folder: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    split = {"a": ["w1 w2", "w3"], "b": ["w4", "w5"], "label": [0, 1]}
    task = classification(folder(train=split, validation=split, test=split), text=["a", "b"])
    encoded = task.encode("train", tokenizer, None)
    assert task.splits["train"].texts[0] == ("w1 w2", "w4")
    assert encoded[0]["input_ids"] == [2, 5, 6, 3, 8, 3]
    assert encoded[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_long_texts_are_cut_and_counted(
    folder: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    split = columns([0, 1, 1], ["w1 " * 40, "w2", "w3 " * 14])
    validation, test = columns([0, 1], ["w4", "w5"]), columns([0, 1], ["w6", "w7"])
    task = classification(folder(train=split, validation=validation, test=test))
    whole = task.encode("train", tokenizer, 512)  # the tokenizer's own limit is 16
    assert whole.lengths.tolist() == [16, 3, 16]
    assert task.notes == ("1 of 3 train texts were cut to 16 tokens.",)
    short = task.encode("train", tokenizer, 8)
    assert short.lengths.max() == 8
    assert task.notes == ("2 of 3 train texts were cut to 8 tokens.",)
    assert short.fingerprint != whole.fingerprint
    assert task.encode("train", tokenizer, 16).fingerprint == whole.fingerprint


# ---------------------------------------------------------------- scores


def test_every_objective_on_samples_equals_the_score_of_the_repeated_rows(
    folder: Write,
) -> None:
    task = classification(
        folder(**three(["a", "b", "b"])), metrics=["f1", "matthews_correlation", "accuracy"]
    )
    assert [(o.name, o.direction) for o in task.objectives] == [
        ("loss", "minimize"),
        ("f1", "maximize"),
        ("matthews_correlation", "maximize"),
        ("accuracy", "maximize"),
    ]
    rng = np.random.default_rng(0)
    outputs = Outputs(
        rng.random(40).astype(np.float32), rng.normal(size=(40, 2)).astype(np.float32)
    )
    labels = rng.integers(0, 2, 40)
    counts = rng.multinomial(40, np.full(40, 1 / 40), size=9)
    samples = task.resample(outputs, labels, counts)
    for b, row in enumerate(counts):
        index = np.repeat(np.arange(40), row)
        scores = task.score(
            Outputs(outputs.loss[index], outputs.predictions[index]), labels[index]
        )
        assert {name: values[b] for name, values in samples.items()} == pytest.approx(scores)


def test_f1_is_about_the_positive_label(folder: Write) -> None:
    data = folder(**three(["entailment", "not_entailment", "entailment"]))
    outputs = Outputs(np.zeros(3, np.float32), np.array([[1, 0], [1, 0], [0, 1]], np.float32))
    labels = np.array([0, 1, 0])
    by_default = classification(data, metrics=["f1"])
    chosen = classification(data, metrics=["f1"], positive="entailment")
    assert by_default.splits.keys() == chosen.splits.keys()
    assert by_default.score(outputs, labels)["f1"] == 0.0
    assert chosen.score(outputs, labels)["f1"] == pytest.approx(0.5)
    with pytest.raises(DataError, match="positive label 'maybe' is not in the data"):
        _ = classification(data, metrics=["f1"], positive="maybe").splits


def test_a_task_can_be_sent_to_a_worker(folder: Write) -> None:
    task = classification(folder(**three(["a", "b", "b"])), metrics=["f1"])
    copy = pickle.loads(pickle.dumps(task))
    assert copy.splits["train"].fingerprint == task.splits["train"].fingerprint


# ---------------------------------------------------------------- what a user can get wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": []}, "one or more different names; got"),
        ({"metrics": ["accuracy", "accuracy"]}, "one or more different names"),
        ({"metrics": ["acuracy"]}, "no metric 'acuracy'.*Did you mean accuracy"),
        ({"metrics": ["pearson"]}, "pearson is not one of sequence-class.*accuracy, f1, macro"),
        ({"text": []}, "one or two different columns"),
        ({"text": ["a", "b", "c"]}, "one or two different columns"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        classification("nowhere", **arguments)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (three([1, 1, 1]), "two or more labels; 'label' is '1' in all 3 rows of train"),
        (three(["a", None, "b"]), r"'label' is missing in row 1 of train \(counted from 0\)"),
        (three([0.5, 1.0, 2.0]), "'label' is 0.5 in row 0 of train.*regression"),
        (three([[0], [1], [0]]), "'label' is a list in row 0 of train"),
        (
            {**three([0, 1, 1]), "test": columns([-1, -1, -1])},
            "test split has no labels: 'label' is -1 .*halve: validation.*hold_out",
        ),
        ({**three([0, 1, 1]), "test": columns([None, None])}, "test split has no labels"),
        ({**three([0, 1, 1]), "train": columns([-1, -1])}, "train split has no labels"),
        (
            {**three([0, 1, 1]), "validation": columns([1, 2, -1])},
            r"validation split has labels that train lacks: '2' \(1 rows\), '-1' \(1 rows\), "
            r"first in row 1 of validation .*Train has '0', '1'",
        ),
        ({**three([0, 1, 1]), "train": {"sentence": ["a"], "label": [1]}}, "train split has no "
         "column 'text'; it has sentence, label.*task.text"),
        ({**three([0, 1, 1]), "test": {"text": ["a"]}}, "test split has no column 'label'"),
        (
            {**three([0, 1, 1]), "test": columns([0, 1], ["a", None])},
            r"'text' is missing in row 1 of test",
        ),
        ({**three([0, 1, 1]), "train": columns([0, 1], [3, 4])}, "'text' is a int in row 0"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit(folder: Write, splits: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _ = classification(folder(**splits)).splits


def test_f1_of_three_labels(folder: Write) -> None:
    with pytest.raises(DataError, match=r"f1 is for two labels; the data has 3\. Use macro_f1"):
        _ = classification(folder(**three(["a", "b", "c"])), metrics=["f1"]).splits


def test_a_row_is_named_by_its_place_in_the_file(folder: Write) -> None:
    data = folder(
        train=columns([0, 1]),
        validation=columns([0, 1, 1, 0], ["a", "b", None, "c"]),  # type: ignore[list-item]
    )
    with pytest.raises(DataError, match="missing in row 2 of validation"):
        _ = classification(data, splitting=Splitting(halve="validation", seed=3)).splits


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (three(["1", "b", "2"]), "finite numbers; 'label' is '1' in row 0 of train"),
        (three([1.0, float("nan"), 2.0]), "'label' is nan in row 1 of train"),
        (three([1.0, None, 2.0]), "'label' is missing in row 1 of train"),
        (
            {**three([1.0, 2.0]), "test": columns([-1.0, -1.0])},
            "test split has no labels.*halve",
        ),
    ],
)
def test_targets_that_are_no_numbers(
    folder: Write, splits: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _ = regression(folder(**splits)).splits


# ---------------------------------------------------------------- real data


def test_cola_is_halved_and_its_shared_texts_are_counted(shared: Path) -> None:
    task = SequenceClassification(
        "cola",
        str(shared / "data/cola"),
        text=["sentence"],
        label="label",
        metrics=["matthews_correlation"],
        splitting=Splitting(halve="validation", seed=41),
    )
    assert [len(task.splits[name]) for name in ("validation", "test")] == [521, 522]
    train = set(task.splits["train"].texts)
    shared_rows = {
        name: sum(text in train for text in task.splits[name].texts)
        for name in ("validation", "test")
    }
    assert sum(shared_rows.values()) == 16  # as the data's own notes count them
    for name, n in shared_rows.items():
        assert (
            f"{n} of {len(task.splits[name])} {name} texts also stand in train." in task.notes
        )


def test_cola_without_splitting_says_what_to_do(shared: Path) -> None:
    with pytest.raises(
        DataError, match=r"test split has no labels.*split: {halve: validation}"
    ):
        _ = classification(str(shared / "data/cola"), text=["sentence"]).splits


def test_stsb_is_a_regression(shared: Path) -> None:
    task = regression(
        str(shared / "data/stsb"), text=["sentence1", "sentence2"], metrics=["pearson"]
    )
    assert task.notes[:2] == (
        "6 of 1,500 validation texts also stand in train.",
        "7 of 1,379 test texts also stand in train.",
    )
    assert task.splits["train"].labels.max() == 5.0
