from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusetune.errors import DataError
from fusetune.tasks.data import read

ROWS = [
    {"text": 'He said "no", twice', "label": 1},
    {"text": "12", "label": 0},
    {"text": "ünï\tcode", "label": 1},
]


def put(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("extension", [".parquet", ".jsonl", ".json", ".csv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, extension: str) -> None:
    put(tmp_path / f"train{extension}", ROWS)
    rows = read(str(tmp_path), columns=["text"])
    assert list(rows) == ["train"]
    texts = extension == ".csv"  # which knows nothing else
    wanted = [{**row, "label": str(row["label"])} if texts else row for row in ROWS]
    assert rows["train"].to_list() == wanted


def test_a_tsv_file_with_marks_that_are_letters_has_no_quoting(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('text\tlabel\n"Open, he said\t1\n7\t0\n')
    rows = read(str(tmp_path), columns=["text"])["train"]
    assert rows.to_list() == [
        {"text": '"Open, he said', "label": "1"},
        {"text": "7", "label": "0"},
    ]


def test_a_csv_text_may_span_lines(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('text,label\n"two\nlines",1\n')
    assert read(str(tmp_path))["train"]["text"][:] == ["two\nlines"]


def test_json_strings_that_look_like_dates_stay_strings(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", [{"text": "2020-01-01 10:00:00", "label": 1}])
    assert read(str(tmp_path))["train"]["text"][:] == ["2020-01-01 10:00:00"]


@pytest.mark.parametrize("alias", ["validation", "valid", "val", "dev"])
def test_aliases_of_validation(tmp_path: Path, alias: str) -> None:
    put(tmp_path / "train.csv", ROWS)
    put(tmp_path / f"{alias}.jsonl", ROWS[:1])
    assert {name: len(split) for name, split in read(str(tmp_path)).items()} == {
        "train": 3,
        "validation": 1,
    }


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    for i, row in enumerate(ROWS):
        put(tmp_path / f"train-0000{i}-of-00003.parquet", [row])
    assert read(str(tmp_path))["train"].to_list() == ROWS


def test_a_mapping_is_relative_to_its_base(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", ROWS)
    put(tmp_path / "b.jsonl", ROWS[:2])
    rows = read({"train": "a.csv", "dev": "b.jsonl"}, base=tmp_path)
    assert [len(split) for split in rows.values()] == [3, 2]


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = put(tmp_path / "train.csv", ROWS)
    before = os.stat(path)
    assert len(read(str(tmp_path))["train"]) == 3
    put(path, ROWS[:2])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(read(str(tmp_path))["train"]) == 2


def test_types_are_those_of_the_whole_csv_file(tmp_path: Path) -> None:
    rows = [{"text": "t" * 100, "label": "7"} for _ in range(15_000)]
    put(tmp_path / "train.csv", [*rows, {"text": "t", "label": "seven"}])
    assert set(read(str(tmp_path))["train"]["label"][:]) == {"7", "seven"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.parquet", b"not parquet", r"train\.parquet cannot be read: .*[Pp]arquet"),
        (
            "train.csv",
            b"text,label\na,1\nb\n",
            r"train\.csv cannot be read: .*2 columns, got 1",
        ),
        (
            "train.csv",
            b"text,label\n\xff\xfe,1\n",
            r"train\.csv cannot be read: it is not UTF-8",
        ),
        ("train.jsonl", b'{"text": "a"}\n{"text": \n', r"line 2 is not JSON"),
        ("train.jsonl", b"[1, 2]", r"row 0 is a int, not an object"),
        ("train.jsonl", b'{"text": "a"}\n{"text": 3}\n', r"'text' mixes types: .*int in row 1"),
        ("train.jsonl", b"", r"The train split is empty: .*train\.jsonl has no rows"),
        ("train.csv", b"text,label\n", r"The train split is empty"),
        ("train.txt", b"a", r"unknown extension '\.txt'; known are \.parquet, \.jsonl"),
        ("test.csv", b"text\na\n", r"has no train split \(test: test\.csv\).*Give a folder"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(str(tmp_path), columns=["text"])


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    path = put(tmp_path / "train.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train\.parquet cannot be read"):
        read(str(tmp_path))


def test_two_files_for_one_split(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", ROWS)
    put(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"more than one file for train: train\.csv, train\.j"):
        read(str(tmp_path))


def test_shards_that_differ(tmp_path: Path) -> None:
    put(tmp_path / "train-0.parquet", [{"text": "a"}])
    put(tmp_path / "train-1.parquet", [{"text": [1]}])
    with pytest.raises(DataError, match=r"2 shards of train .* same columns"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    "data", ["./cola", "/no/such/cola", "~/no-such-cola", "a/b/c", "x.csv"]
)
def test_a_missing_path_is_not_looked_up_on_the_hub(tmp_path: Path, data: str) -> None:
    with pytest.raises(DataError, match=r"The folder .* does not exist\. Give a folder"):
        read(data, base=tmp_path)


def test_a_path_that_exists_in_part_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"The folder .*data/cola does not exist"):
        read("data/cola", base=tmp_path)


def test_one_file_is_no_data_set(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", ROWS)
    with pytest.raises(DataError, match=r"is one file.*Write data: {train:"):
        read("train.csv", base=tmp_path)


def test_a_mapping_with_a_missing_file_or_a_strange_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"The train file .*a\.csv does not exist"):
        read({"train": "a.csv"}, base=tmp_path)
    with pytest.raises(DataError, match="one of train, validation, test; got 'training'"):
        read({"training": "a.csv"}, base=tmp_path)


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(
        DataError,
        match=r"'nyu-mll/glue:cola' is no local folder.*Couldn't reach.*HF_HUB_OFFLINE",
    ):
        read("nyu-mll/glue:cola")


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def load(path: str, config: str | None, **kwargs: object) -> datasets.DatasetDict:
        assert (path, config) == ("nyu-mll/glue", "cola")
        rows = datasets.Dataset.from_list(ROWS)
        return datasets.DatasetDict({"train": rows, "dev": rows, "extra": rows})

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    assert list(read("nyu-mll/glue:cola")) == ["train", "validation"]


def test_a_hub_data_set_where_no_cache_can_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    seen: dict[str, object] = {}

    def load(path: str, config: str | None, **kwargs: object) -> datasets.DatasetDict:
        seen.update(kwargs)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    (tmp_path / "file").touch()
    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    assert len(read("name")["train"]) == 3
    assert seen["keep_in_memory"] is True
    assert "fusetune-data-" in str(seen["cache_dir"])
