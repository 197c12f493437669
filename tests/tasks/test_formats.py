"""What files say is what the rows are: encodings, separators, quotes, forms of JSON, labels."""

from __future__ import annotations

import codecs
import csv
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from fusetune.errors import DataError, RecipeError
from fusetune.pipeline.make_task import make_task
from fusetune.recipe_sections import TaskSection

Read = Callable[..., tuple[list[str], list[str]]]
ROWS = [("Größe, gut", "ja"), ("naß; kalt", "nein")]
OBJECTS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
SPLITS = ("train", "validation", "test")


def delimited(rows: Any, separator: str = ",", eol: str = "\n", **options: Any) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator, lineterminator=eol, **options)
    writer.writerows([("text", "label"), *rows])
    return stream.getvalue()


def labelled(*labels: str) -> str:
    return delimited([(f"text {i}", label) for i, label in enumerate(labels)])


def names(task: Any) -> tuple[str, ...]:
    """The name of each class id."""
    _ = task.splits
    return tuple(task._head()["id2label"].values())


@pytest.fixture
def read_task(tmp_path: Path) -> Callable[..., Any]:
    def make(content: str | bytes, ending: str, **changes: Any) -> Any:
        for old in tmp_path.iterdir():
            old.unlink()
        for split in SPLITS:
            data = content.encode() if isinstance(content, str) else content
            (tmp_path / f"{split}{ending}").write_bytes(data)
        given = {"text": ["text"], "metrics": ["accuracy"], **changes}
        return make_task(TaskSection(data=str(tmp_path), **given), 41)

    return make


@pytest.fixture
def read(read_task: Callable[..., Any]) -> Read:
    """Texts and labels of train as a task has them."""

    def found(content: str | bytes, ending: str, **changes: Any) -> tuple[list[str], list[str]]:
        task = read_task(content, ending, **changes)
        rows = task.splits["train"]
        return [t for (t,) in rows.texts], [names(task)[i] for i in rows.labels]

    return found


@pytest.mark.parametrize(
    "labels",
    [
        ("NA", "x"), ("1e5", "100000"), ("007", "7"), ("true", "True"), ("yes", "no"),
        ("2026-01-01", "2026-01-02"), (" null ", "null", "NULL"), ("1.0", "1"), ("nan", "inf"),
        ("None", "N/A"), ("0x10", "16"), ("-1", "1"), ("1_000", "1000"), ("12:30", "12:31"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_labels_of_csv_files_are_what_stands_there(
    labels: tuple[str, ...], separator: str, read: Read
) -> None:
    rows = [(label, label) for label in labels]
    for ending in (".csv", ".tsv"):
        texts, found = read(delimited(rows, separator), ending)
        assert texts == found == list(labels)


def test_classes_that_are_numbers_keep_their_order(read_task: Callable[..., Any]) -> None:
    assert names(read_task(labelled("10", "9", "2"), ".csv")) == ("2", "9", "10")
    assert names(read_task(labelled("10.0", "9.0"), ".csv")) == ("9.0", "10.0")
    assert names(read_task(labelled("7", "007", "6"), ".csv")) == ("6", "007", "7")


@pytest.mark.parametrize(
    ("content", "ending", "options"),
    [
        (codecs.BOM_UTF8 + delimited(ROWS, ";", "\r\n").encode(), ".csv", {}),
        (delimited(ROWS, ";", "\r\n").encode("cp1252"), ".csv", {"encoding": "cp1252"}),
        (delimited(ROWS, "\t", "\r\n").encode("utf-16"), ".csv", {}),
        (delimited(ROWS, "\t", "\r\n").encode("utf-16"), ".tsv", {}),
        (delimited(ROWS).encode("utf-32"), ".csv", {}),
        (delimited(ROWS).encode("utf-16-le"), ".csv", {"encoding": "utf-16-le"}),
        ("sep=;\r\n" + delimited(ROWS, ";", "\r\n"), ".csv", {}),
        (delimited(ROWS, "|"), ".csv", {"separator": "|"}),
        (delimited(ROWS, "\t"), ".csv", {"separator": "tab"}),
        (delimited(ROWS, eol="\r"), ".csv", {}),
        (delimited(ROWS, ";").encode("mac-roman"), ".csv", {"encoding": "mac-roman"}),
        (delimited(ROWS, "\t", quoting=csv.QUOTE_ALL), ".tsv", {}),
        (delimited(ROWS, "\t", quoting=csv.QUOTE_NONNUMERIC), ".tsv", {}),
    ],
)  # fmt: skip
def test_files_of_spreadsheets(
    content: bytes, ending: str, options: dict[str, str], read: Read
) -> None:
    found = read(content, ending, options={"csv": options} if options else {})
    assert found == ([text for text, _ in ROWS], [label for _, label in ROWS])


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (delimited([('say "yes"', "a"), ("plain", "b")], "\t"), ['say "yes"', "plain"]),
        (delimited([("two\nlines", "a"), ("a\ttab", "b")], "\t"), ["two\nlines", "a\ttab"]),
        ('text\tlabel\n"Open, he said\ta\nIt is "so"\tb\n', ['"Open, he said', 'It is "so"']),
        ('text\tlabel\n"Hello."\ta\nplain\tb\n', ['"Hello."', "plain"]),
        ('text\tlabel\n"a" b\ta\nplain\tb\n', ['"a" b', "plain"]),
    ],
)  # fmt: skip
def test_tsv_is_read_as_csv_and_pandas_or_glue_write_it(
    content: str, texts: list[str], read: Read
) -> None:
    assert read(content, ".tsv") == (texts, ["a", "b"])


def test_marks_of_which_nobody_knows_whether_they_are_letters(read: Read) -> None:
    content = 'text\tlabel\n"Hello, you."\ta\nplain\tb\n'
    with pytest.raises(DataError, match=r"may be letters.*task\.options\.csv: {quoted: true}"):
        read(content, ".tsv")
    for quoted, text in ((True, "Hello, you."), (False, '"Hello, you."')):
        assert read(content, ".tsv", options={"csv": {"quoted": quoted}})[0][0] == text


def test_long_texts_and_empty_lines(read: Read) -> None:
    rows = [("x" * 300_000, "a"), ("y", "b")]
    assert read(delimited(rows).replace("\n", "\n\n"), ".csv") == (
        [t for t, _ in rows],
        ["a", "b"],
    )


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(map(json.dumps, OBJECTS)),
        "\n".join(json.dumps(row, indent=1) for row in OBJECTS),
        json.dumps(OBJECTS),
        "\ufeff" + json.dumps(OBJECTS, indent=2),
        json.dumps({"version": "1.1", "data": OBJECTS}),
        json.dumps({"schema": {"fields": [{"name": "text"}]}, "data": OBJECTS}),
        json.dumps({"text": ["a", "b"], "label": ["x", "y"]}),
        json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}),
        json.dumps({"0": OBJECTS[0], "1": OBJECTS[1]}),
        json.dumps({"q-one": OBJECTS[0], "q-two": OBJECTS[1]}),
        json.dumps({"columns": ["text", "label"], "data": [["a", "x"], ["b", "y"]]}),
        '{"text": "a", "z": 1, "z": 2, "label": "x"}\n{"text": "b", "label": "y"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_forms_of_json(content: str, ending: str, read: Read) -> None:
    assert read(content, ending) == (["a", "b"], ["x", "y"])
    assert read(content.encode("utf-16"), ending) == (["a", "b"], ["x", "y"])


@pytest.mark.parametrize(
    ("content", "ending", "message"),
    [
        (delimited(ROWS).encode("cp1252"), ".csv",
         r"not UTF-8, see byte 0xf6 in line 2.*Größe, gut.*csv: {encoding: cp1252}"),
        (b"\xe4" * 9 + b"\n" + b"\xe4" * 50, ".csv", "not UTF-8, see byte 0xe4 in line 1"),
        ("Größe,label\na,b\n".encode("cp1252"), ".csv", r"not UTF-8, see byte 0xf6 in line 1"),
        (delimited(ROWS).encode("utf-16-le"), ".csv", r"bytes of zero.*encoding: utf-16-le"),
        (delimited(ROWS, "|"), ".csv", r"expected 1 columns, got 2; .*csv: {separator: …}"),
        ("text|label\na|b", ".csv", r"it has text\|label\. .*csv: {separator: …}"),
        ('text,label\n"a,x\nb,y\n', ".csv", 'sign " that begins a field in line 2 or below'),
        ('text,label\n"Hi" she said,x\n', ".csv", 'in line 2 the sign " stands inside'),
        ("text,label\na,x\nb\n", ".csv", "line 3 .*expected 2 columns, got 1"),
        ("text,text,label\na,b,c\n", ".csv", "has the column 'text' 2 times"),
        ("text, Label\na,b\n", ".csv", "no column 'label' .' Label' differs in case, spaces"),
        ('{"text": "a", "text": "b", "label": "x"}', ".jsonl", "'text' .*twice in row 0"),
        (json.dumps([["a", "x"]]), ".json", "row 0 is a list, not an object. Usual forms are"),
        (json.dumps({"train": OBJECTS, "test": OBJECTS}), ".json", "under each of train, test"),
        (json.dumps({"text": ["a"], "label": []}), ".json", "in length: text 1, label 0"),
        ('{"text": "schön"}'.encode("cp1252"), ".jsonl", "not UTF-8.*Save it as UTF-8"),
    ],
)  # fmt: skip
def test_words_that_help(content: bytes, ending: str, message: str, read: Read) -> None:
    with pytest.raises(DataError, match=message):
        read(content, ending)


def test_columns_that_stand_twice_and_are_not_used(read: Read) -> None:
    assert read("text,label,,,x,x\na,p,,,1,2\nb,q,,,1,2\n", ".csv") == (["a", "b"], ["p", "q"])


@pytest.mark.parametrize(
    "options",
    [{"seperator": ";"}, {"separator": ";;"}, {"encoding": "cp1525"}, {"encoding": "rot13"},
     {"quoted": "perhaps"}, {"separator": ["x"]}],
    ids=str,
)  # fmt: skip
def test_options_of_csv_files_that_make_no_sense(options: Any, read: Read) -> None:
    with pytest.raises(RecipeError, match=r"task\.options\.csv"):
        read(delimited(ROWS), ".csv", options={"csv": options})


def test_letters_that_are_composed_in_another_way(read: Read, tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "Größe")
    with pytest.raises(DataError, match=r"no column 'Größe' .*same letters, otherwise encoded"):
        read(f"{apart},label\na,b\n", ".csv", text=["Größe"])
    content = labelled("schön", "böse")
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text(content)
    (tmp_path / "test.csv").write_text(unicodedata.normalize("NFD", content))
    task = make_task(TaskSection(data=str(tmp_path), text=["text"], metrics=["accuracy"]), 41)
    with pytest.raises(DataError, match=r"test split has labels .*same letters, otherwise"):
        _ = task.splits


def test_minus_one_of_a_class_label_is_no_label(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    columns = {"text": list("abcd"), "label": [0, -1, 1, 0]}
    for split in SPLITS:
        rows = datasets.Dataset.from_dict(columns, features=features)
        rows.to_parquet(str(tmp_path / f"{split}.parquet"))
    section = TaskSection(data=str(tmp_path), text=["text"], metrics=["accuracy"])
    with pytest.raises(
        DataError, match=r"1 of 4 train rows have no label: 'label' is -1 in row 1"
    ):
        _ = make_task(section, 41).splits
    task = make_task(section.model_copy(update={"options": {"drop": True}}), 41)
    assert task.splits["test"].texts == (("a",), ("c",), ("d",))
    assert task.splits["test"].labels.tolist() == [0, 1, 0]
    assert "1 of 4 train rows have no label and were left out." in task.notes


def test_minus_one_in_a_csv_file_is_asked_about(read: Read) -> None:
    content = labelled("0", "1", "-1")
    with pytest.raises(DataError, match=r"-1 in train, beside 0, 1: .*drop to true.*'-1', '0'"):
        read(content, ".csv")
    assert read(content, ".csv", options={"drop": True})[1] == ["0", "1"]
    assert read(content, ".csv", options={"labels": ["-1", "0", "1"]})[1] == ["0", "1", "-1"]
    assert read(labelled("-2", "-1", "0"), ".csv")[1] == ["-2", "-1", "0"]


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (["1.5", "-1e-3", " 2 ", "7"], [1.5, -0.001, 2.0, 7.0]),
        (["0,75", "1,5", "2"], [0.75, 1.5, 2.0]),
        (["1,234", "2"], r"'label' is '1,234' in row 0 of train .*decimal point"),
        (["1.5", "NA"], "'label' is 'NA' in row 1"),
        (["1.5", "1_000"], "'label' is '1_000' in row 1"),
        (["1.5", "inf"], "'label' is 'inf' in row 1"),
        (["1.5", "", "2"], "1 of 3 train rows have no label: 'label' is missing in row 1"),
    ],
)  # fmt: skip
def test_numbers_of_a_regression(
    labels: list[str], numbers: Any, read_task: Callable[..., Any]
) -> None:
    task = read_task(labelled(*labels), ".csv", kind="regression", metrics=["pearson"])
    if isinstance(numbers, list):
        assert task.splits["train"].labels.tolist() == numbers
        return
    with pytest.raises(DataError, match=numbers):
        _ = task.splits


@pytest.mark.parametrize("names", [("validation-matched", "validation-mismatched"), ("dev_a",)])
def test_several_files_that_could_be_validation(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("train", *names, "test"):
        (tmp_path / f"{name}.csv").write_text(labelled("a", "b"))
    section = TaskSection(data=str(tmp_path), text=["text"], metrics=["accuracy"])
    with pytest.raises(DataError, match=rf"no validation split.*also has {names[0]}\.csv"):
        _ = make_task(section, 41).splits
    halved = TaskSection(**{**section.model_dump(), "split": {"halve": "test"}})
    assert len(make_task(halved, 41).splits["validation"]) == 1


def test_shards_that_are_not_all_there(tmp_path: Path) -> None:
    for i in (0, 2):
        (tmp_path / f"train-0000{i}-of-00003.csv").write_text(labelled("a", "b"))
    section = TaskSection(data=str(tmp_path), text=["text"], metrics=["accuracy"])
    with pytest.raises(DataError, match="does not have all 3 files"):
        _ = make_task(section, 41).splits


def test_a_parquet_file_with_a_column_twice(tmp_path: Path) -> None:
    columns = [pa.array(["a", "b"]), pa.array(["x", "y"]), pa.array([1, 2]), pa.array([3, 4])]
    for names, fine in (
        (["text", "label", "n", "n"], True),
        (["text", "label", "text", "n"], False),
    ):
        for split in SPLITS:
            table = pa.Table.from_arrays(columns, names=names)
            pa.parquet.write_table(table, tmp_path / f"{split}.parquet")
        section = TaskSection(data=str(tmp_path), text=["text"], metrics=["accuracy"])
        if fine:
            assert len(make_task(section, 41).splits["train"]) == 2
            continue
        with pytest.raises(DataError, match="has the column 'text' 2 times"):
            _ = make_task(section, 41).splits


def test_what_a_metric_is_about(read_task: Callable[..., Any]) -> None:
    metrics = ["f1", "macro_f1", "accuracy"]
    for positive, other in (("yes", "no"), ("no", "yes")):
        task = read_task(
            labelled("yes", "no"), ".csv", metrics=metrics, options={"positive": positive}
        )
        assert task.about["f1"] == f"the F1 of the label {positive!r}, against {other!r}"
        assert "mean of the F1 of all 2 labels" in task.about["macro_f1"]
    assert "'yes'" in read_task(labelled("yes", "no"), ".csv", metrics=["f1"]).about["f1"]


@pytest.mark.parametrize(
    ("kind", "metric", "message"),
    [
        ("regression", "mae", "no metric 'mae' of regression; known are pearson, spearman"),
        ("regression", "my:mae", r"known are pearson, spearman\. .*fusetune\.fuse"),
        ("regression", "recall", "known are pearson, spearman"),
        ("regression", "f1", "f1 is not one of regression; known are pearson, spearman"),
        ("sequence-classification", "rouge1", "known are accuracy, f1, macro_f1, matthews_c"),
        ("span-question-answering", "accuracy", "known are exact_match, f1, rouge1"),
    ],
)
def test_a_metric_that_a_kind_lacks_lists_what_it_has(
    kind: str, metric: str, message: str, read_task: Callable[..., Any]
) -> None:
    text = ["text", "label"] if kind.startswith("span") else ["text"]
    with pytest.raises(RecipeError, match=message):
        read_task(labelled("1", "2"), ".csv", kind=kind, metrics=[metric], text=text)
