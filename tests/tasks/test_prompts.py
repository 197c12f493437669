"""Templates on plain data: fields by any name, nulls, media; places of options."""

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

from fusetune.errors import DataError, RecipeError
from fusetune.tasks import text_metrics
from fusetune.tasks.choice import MultipleChoice
from fusetune.tasks.generation import Generation

Write = Callable[..., str]
PNG = bytes.fromhex("89504e470d0a1a0a")


def generation(data: str, prompt: str) -> Generation:
    return Generation("made", data, prompt=prompt, reference="ref", metrics=["exact_match"])


@pytest.fixture
def prompts(folder: Write) -> Callable[..., tuple[list[str], tuple[str, ...]]]:
    """The prompts of some columns, and the task's notes about nulls."""

    def made(prompt: str, /, **columns: Any) -> tuple[list[str], tuple[str, ...]]:
        columns["ref"] = ["r"] * len(next(iter(columns.values())))
        task = generation(folder(train=columns, validation=columns, test=columns), prompt)
        texts = [text for (text,) in task.splits["train"].texts]
        return texts, tuple(note for note in task.notes if "is null" in note)

    return made


@pytest.mark.parametrize(
    "name",
    ["items", "keys", "values", "get", "text", "label", "prompt", "range", "dict", "namespace",
     "cycler", "loop", "context", "environment", "Größe"],
)  # fmt: skip
def test_a_field_is_the_column_whatever_it_is_called(name: str, prompts: Any) -> None:
    assert prompts(f"{{{{ {name} }}}}", **{name: ["one", "two"]})[0] == ["one", "two"]
    nested = [{name: "one", "other": "x"}, {name: "two", "other": "y"}]
    assert prompts(f"{{{{ row.{name} }}}}", row=nested)[0] == ["one", "two"]


def test_what_templates_call_is_their_own(prompts: Any) -> None:
    assert prompts("{% for i in range(2) %}{{ a }}{% endfor %}", a=["q"])[0] == ["qq"]
    loop = "{% for k, v in a.items() %}{{ k }}={{ v }} {% endfor %}"
    assert prompts(loop, a=[{"x": "i", "y": None}])[0] == ["x=i y= "]


@pytest.mark.parametrize("name", ["none", "true", "self"])
def test_words_that_cannot_be_fields(name: str, prompts: Any) -> None:
    with pytest.raises(RecipeError, match="names no field"):
        prompts(f"{{{{ {name} }}}}", **{name: ["one"]})
    with pytest.raises(DataError, match=f"the word '{name}', a column's name"):
        prompts(f"{{{{ a }}}}{{{{ {name} }}}}", a=["one"], **{name: ["two"]})


def test_null_is_empty_and_counted(prompts: Any) -> None:
    template = (
        "{{ i }}|{{ 'x' ~ i }}|{{ i | upper }}|{{ i or 'nothing' }}|"
        "{% if i is none %}N{% endif %}{% if i != none %}Y{% endif %}|{{ l | tojson }}"
    )
    texts, notes = prompts(template, i=[None, "a"], l=[[None, "x"], ["y"]])
    assert texts == ['|x||nothing|N|[null, "x"]', 'a|xa|A|a|Y|["y"]']
    assert notes[0] == "In 1 of 2 train rows 'i' is null: empty in the prompt."
    assert len(notes) == 3


@pytest.mark.parametrize(
    "value",
    [datetime.datetime(2026, 1, 1), datetime.date(2026, 1, 1), Decimal("1.5"), b"x",
     datetime.timedelta(1), [b"x"], {"a": [Decimal("1.5")]}],
    ids=str,
)  # fmt: skip
def test_what_is_no_plain_data_is_refused_by_its_column(value: Any, prompts: Any) -> None:
    with pytest.raises(DataError, match=r"'strange' has something else.* in row 0 of train"):
        prompts("{{ strange }}", strange=[value])
    assert prompts("{{ a }}", a=["fine"], strange=[value])[0] == ["fine"]


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video", "Pdf"])
def test_media_are_never_decoded(kind: str, tmp_path: Path) -> None:
    features = {"img": {"_type": kind}, "ref": {"dtype": "string", "_type": "Value"}}
    said = json.dumps({"info": {"features": features}})
    held = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"img": pa.array([{"bytes": PNG, "path": None}] * 2, held), "ref": ["a", "b"]}
    table = pa.table(columns).replace_schema_metadata({"huggingface": said})
    for split in ("train", "validation", "test"):
        pa.parquet.write_table(table, tmp_path / f"{split}.parquet")
    target = tmp_path / "elsewhere.ppm"
    for call in (f"img.save('{target}', format='PPM')", "img", "img.bytes"):
        with pytest.raises(DataError, match="'img' has something else, bytes, in row 0"):
            _ = generation(str(tmp_path), f"{{{{ {call} }}}}{{{{ ref }}}}").splits
    assert not target.exists()
    assert len(generation(str(tmp_path), "{{ ref }}").splits["train"]) == 2


@pytest.mark.parametrize(
    ("rows", "right"),
    [
        ([("x", "y", "z", "2"), ("u", "v", "w", "0")], ["z", "u"]),
        ([("1", "2", "30", "2"), ("1", "2", "30", "1")], ["30", "2"]),
        ([("1", "2", "30", "30"), ("1", "2", "30", "1")], ["30", "1"]),  # no place is 30
        ([("3", "4", "5", "4"), ("6", "7", "8", "7")], ["4", "7"]),
        ([("x", "y", "z", "C"), ("x", "y", "z", "a")], ["z", "x"]),
        ([("x", "y", "z", "z"), ("x", "y", "z", "x")], ["z", "x"]),
        ([("b", "a", "c", "a"), ("b", "a", "c", "b")], ["a", "b"]),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_place_among_options_is_a_place(
    rows: Any, right: list[str], ending: str, tmp_path: Path
) -> None:
    separator = "," if ending == ".csv" else "\t"
    lines = [("q", "a", "b", "c", "answer"), *(("?", *row) for row in rows)]
    for split in ("train", "validation", "test"):
        text = "\n".join(
            map(separator.join, lines if split == "train" else [*lines[:1], lines[-1]])
        )
        (tmp_path / f"{split}{ending}").write_text(text)
    task = MultipleChoice(
        "made", str(tmp_path), prompt="{{ q }}", reference="answer", metrics=["accuracy"],
        choices=["a", "b", "c"],
    )  # fmt: skip
    assert [golds[0] for golds in task.splits["train"].labels] == right
    assert [golds[0] for golds in task.splits["test"].labels] == right[-1:]


@pytest.mark.parametrize(
    ("options", "answers", "right"),
    [
        (["1", "2", "30"], [2, 1], ["30", "2"]),
        (["1", "2", "30"], [2.0, None, 1.0], ["30", "2"]),
        (["1", "2", "30"], ["2", "1"], ["2", "1"]),  # a text is an option's text
        (["x", "y", "z"], ["2", "0"], ["z", "x"]),
        ([1, 2, 30], ["30", "1"], ["30", "1"]),
    ],
)
def test_answers_of_files_with_types(
    options: list[Any], answers: list[Any], right: list[str], folder: Write
) -> None:
    columns = {"q": ["?"] * len(answers), "o": [options] * len(answers), "answer": answers}
    data = folder(train=columns, validation=columns, test=columns)
    task = MultipleChoice(
        "made", data, prompt="{{ q }}", reference="answer", metrics=["accuracy"], choices="o",
        drop=True,
    )  # fmt: skip
    assert [golds[0] for golds in task.splits["train"].labels] == right


@pytest.mark.parametrize(
    ("metric", "references", "notes"),
    [
        ("exact_match", ["3.5", "no"], ["1 of 2 references have numbers with a point"]),
        ("rouge1", ["das ist schön", "漢字", "plain"], ["2 of 3 references have letters beyond",
                                                     "1 have no word for them at all"]),
        ("f1", ["漢字", "plain"], ["1 of 2 references are in a script without spaces"]),
        ("f1", ["plain", "35"], []),
        ("chrf", ["漢字 3.5"], []),
    ],
)  # fmt: skip
def test_what_metrics_do_not_see_is_said(
    metric: str, references: list[str], notes: list[str]
) -> None:
    said = " ".join(text_metrics.notes([metric], [(text,) for text in references]))
    assert bool(said) == bool(notes)
    assert all(note in said for note in notes)
