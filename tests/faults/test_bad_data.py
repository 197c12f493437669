"""Data sets with wrong types, without columns, with markup and control characters."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusetune.errors import FusetuneError
from fusetune.pipeline.make_task import make_task
from fusetune.recipe_sections import TaskSection
from fusetune.tasks.files import read_table

Attempt = Callable[[Callable[[], Any]], tuple[Any, FusetuneError | None]]
TEXTS = ["fine", "dull", "lovely", "grim"]
LABELS = ["a", "b", "a", "b"]
COUNT = len(TEXTS)
DAY = datetime.date(2026, 1, 1)

COLUMNS: dict[str, Any] = {
    "numbers": [1, 2, 3, 4],
    "floats": [0.5, float("nan"), float("inf"), 1.0],
    "booleans": [True, False, True, False],
    "nulls": [None] * COUNT,
    "some-nulls": ["x", None, "y", None],
    "lists": [["x"], [], ["y", "z"], []],
    "structs": [{"x": 1}, {"x": 2}, {"x": 3}, {"x": 4}],
    "bytes": [b"x", b"\xff\xfe", b"", b"\x00"],
    "dates": [DAY] * COUNT,
    "times": [datetime.datetime(2026, 1, 1)] * COUNT,
    "decimals": [Decimal("1.5")] * COUNT,
    "durations": [datetime.timedelta(1)] * COUNT,
    "empty": [""] * COUNT,
    "markup": ["<script>alert(1)</script>", "&amp;", "{{ 7 * 7 }}", "{% raw %}"],
    "controls": ["\x00", "\x1b[2J", "\u202ex", "\r\n\t"],
    "unicode": ["e\u0301", "漢字", "🙂" * 20, "\ufeff"],
    "huge": [2**62, -(2**62), 0, 1],
    "negative": [-1, -2, -3, -4],
    "long": ["x" * 200_000, "y", "z", "w"],
    "alike": ["same"] * COUNT,
    "many": [f"label {i}" for i in range(COUNT)],
    "maps": pa.array([[("k", 1)]] * COUNT, pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(LABELS).dictionary_encode(),
    "float16": pa.array([0.5, 1.0, 1.5, 2.0], pa.float16()),
    "unsigned": pa.array([0, 1, 2, 2**64 - 1], pa.uint64()),
    "large-text": pa.array(TEXTS, pa.large_string()),
    "text-view": pa.array(TEXTS, pa.string_view()),
}


def task_of(folder: Path, metric: str = "accuracy", **changes: Any) -> Any:
    """Everything of a task that is done before a training: rows read, checked and split."""
    section = TaskSection(
        data=str(folder), text=["text"], label="label", metrics=[metric], **changes
    )
    task = make_task(section, 41)
    return {name: (split.texts, split.labels) for name, split in task.splits.items()}


def write_parquet(folder: Path, split: str, **columns: Any) -> None:
    folder.mkdir(exist_ok=True)
    pa.parquet.write_table(pa.table(columns), folder / f"{split}.parquet")


def sound(folder: Path, but: str) -> None:
    for split in ("train", "validation", "test"):
        if split != but:
            write_parquet(folder, split, text=TEXTS, label=LABELS)


@pytest.mark.parametrize("column", ["text", "label"])
@pytest.mark.parametrize("kind", sorted(COLUMNS))
@pytest.mark.parametrize("task", ["sequence-classification", "regression"])
def test_columns_of_every_type(
    column: str, kind: str, task: str, tmp_path: Path, attempt: Attempt
) -> None:
    numbers = task == "regression"
    plain = {"text": TEXTS, "label": [0.1, 0.2, 0.3, 0.4] if numbers else LABELS}
    metric = "pearson" if numbers else "accuracy"
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / "data", split, **{**plain, column: COLUMNS[kind]})
    found, error = attempt(lambda: task_of(tmp_path / "data", metric, kind=task))
    if error is None:
        for texts, labels in found.values():
            assert len(texts) == len(labels) == COUNT
            assert all(isinstance(text, str) for row in texts for text in row)
            if numbers:
                assert all(abs(float(label)) < float("inf") for label in labels)
    else:
        assert column in str(error)


FILES: dict[str, list[bytes]] = {
    ".jsonl": [
        b"", b"\n\n", b"{", b"[]", b"[1]", b"[[]]", b"null", b"3", b'"x"', b"{}", b"{}\n{}",
        b'{"text": "a"}\n{"label": "b"}',
        b'{"text": "a", "label": "b"}\n{"text": 3, "label": []}',
        b'{"text": "a", "label": NaN}', b'{"text": "\\ud800", "label": "b"}', b"\xff\xfe{}",
        b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"[" * 100_000,
        b'{"a":' * 100_000, b'{"text": ' + b"9" * 5000 + b', "label": 1}',
        b'{"text": 1e999, "label": 1}', b'{"text": "a", "text": "b", "label": "c"}',
        b'{"": "a", "label": "c"}', b'{"text\\u0000": "a", "label": "c"}',
        b'{"text": "a", "label": ' + str(2**80).encode() + b"}", b"\x00" * 100,
        b'{"text": {"a": 1}, "label": 1}\n{"text": {"b": "x"}, "label": 1}',
    ],
    ".json": [b"", b"[", b"{}", b"[{}, 1]", b'[{"text": "a"}, {"text": 1}]', b"[]", b"[null]"],
    ".csv": [
        b"", b"\n", b"text", b"text,label", b"text,label\n", b"text,label\na",
        b"text,label\na,b,c",
        b"text,text\na,b", b'text,label\n"a,b', b"text,label\n\xff,\xfe", b"\x00\x00,\x00",
        b"text,label\n" + b"\x00" * 50 + b",x", b'"text\nlabel",x\n1,2', b"<html></html>",
    ],
    ".tsv": [b"", b"\t", b"text\tlabel\n\t", b'text\tlabel\n"a\tb', b"text\tlabel\na\tb\tc"],
    ".parquet": [b"", b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff" * 8 + b"PAR1", b"\x00" * 64,
                 b"PAR1" + b"\x00" * 100 + b"\x64\x00\x00\x00PAR1", b"text,label\na,b"],
    ".xlsx": [b"PK\x03\x04"], ".pkl": [b"cos\nsystem\n(S'touch harm'\ntR."], "": [b"x"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "content"),
    [(ending, content) for ending, contents in FILES.items() for content in contents],
    ids=lambda value: str(value)[:30],
)
def test_files_that_are_not_what_they_say(
    ending: str,
    content: bytes,
    tmp_path: Path,
    attempt: Attempt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound(tmp_path / "data", but="train")
    (tmp_path / "data" / f"train{ending}").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    attempt(lambda: task_of(tmp_path / "data"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "data"
    sound(folder, but="")
    return folder


@settings(max_examples=60)
@given(data=st.data())
def test_parquet_with_flipped_bits(data: st.DataObject, place: Path, attempt: Attempt) -> None:
    content = bytearray((place / "validation.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(
            st.integers(0, 7)
        )
    file = place.parent / "flipped.parquet"
    file.write_bytes(content)
    found, error = attempt(lambda: read_table(file))
    if error is None:
        assert found.num_columns <= 2


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
nested = values | st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=3), values)


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"text": st.text(max_size=8) | nested, "label": values}),
        min_size=1,
        max_size=6,
    )
)
def test_rows_of_any_value(rows: list[Any], place: Path, attempt: Attempt) -> None:
    folder = place.parent / "rows"
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    found, error = attempt(lambda: task_of(folder))
    if error is None:
        texts, _ = found["train"]
        assert [text for (text,) in texts] == [row["text"] for row in rows]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    "columns",
    [{"text": TEXTS}, {"label": LABELS}, {"other": TEXTS}, {"text": [], "label": []},
     {"text": TEXTS, "label": ["a", "b", "c", "d"]}, {"text": TEXTS[:1], "label": LABELS[:1]}],
    ids=str,
)  # fmt: skip
def test_splits_that_do_not_fit_together(
    split: str, columns: Any, tmp_path: Path, attempt: Attempt
) -> None:
    sound(tmp_path, but=split)
    write_parquet(tmp_path, split, **columns)
    attempt(lambda: task_of(tmp_path))


@pytest.mark.parametrize(
    "metadata",
    ["", "{", "[]", "null", '{"info": 3}', '{"info": {"features": 3}}',
     '{"info": {"features": {"text": {"_type": "Nothing"}}}}',
     '{"info": {"features": {"text": {"_type": "__import__"}, "label": null}}}',
     '{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, 2, 2]}}}}',
     '{"info": {"features": {"text": {"_type": "Value", "dtype": "int8"}}}}'],
)  # fmt: skip
def test_what_a_parquet_file_says_of_itself(
    metadata: str, tmp_path: Path, attempt: Attempt
) -> None:
    sound(tmp_path, but="train")
    table = pa.table({"text": TEXTS, "label": LABELS})
    table = table.replace_schema_metadata({"huggingface": metadata})
    pa.parquet.write_table(table, tmp_path / "train.parquet")
    found, error = attempt(lambda: task_of(tmp_path))
    if error is None:
        assert [text for (text,) in found["train"][0]] == TEXTS


def test_pipes_and_devices_are_no_data(tmp_path: Path, attempt: Attempt) -> None:
    import os

    sound(tmp_path, but="train")
    os.mkfifo(tmp_path / "train.jsonl")
    _, error = attempt(lambda: task_of(tmp_path))
    assert error is not None
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.jsonl").symlink_to("/dev/zero")
    _, error = attempt(lambda: task_of(tmp_path))
    assert error is not None
