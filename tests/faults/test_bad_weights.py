"""Weight files and what lies beside them, damaged or made to do harm."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import FusetuneError, MemberError
from fusetune.members.adapter import AdapterMember
from fusetune.members.header import read_header
from fusetune.members.manifest import read_manifest
from fusetune.members.member import Member
from fusetune.members.pool import MemberPool, inspect

Attempt = Callable[[Callable[[], Any]], tuple[Any, FusetuneError | None]]
WEIGHTS = "model.safetensors"


def content_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, stop: int, *, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


class Bomb:
    """Makes a file if it is ever unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.target), "w"))


def check(path: Path, attempt: Attempt) -> MemberError | None:
    """What is accepted must be what the format's own library reads, and nothing less."""
    found, error = attempt(lambda: read_header(path))
    if error is not None:
        assert isinstance(error, MemberError)
        return error
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(found)
        for name, info in found.items():
            assert tuple(file.get_slice(name).get_shape()) == info.shape
            assert file.get_tensor(name).dtype == info.dtype
    return None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\x00" * 8,
        b"\xff" * 8,
        b"\xff" * 64,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_999_999) + b"{}",
        struct.pack("<Q", 100_000_001) + b"{}",
        struct.pack("<Q", 1) + b"{",
        content_of(b"{}", length=3),
        content_of(b"[]"),
        content_of(b"null"),
        content_of(b"1e999"),
        content_of(b'{"a": NaN}'),
        content_of(b"{" * 1000),
        content_of(b"[" * 200_000),
        content_of(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        content_of(json.dumps({"a": tensor(0, 4)}).encode("utf-16"), b"\x00" * 4),
        content_of(b'{"\xff": 1}'),
        content_of({"a": None}),
        content_of({"a": []}),
        content_of({"a": {}}),
        content_of({"a": "F32"}),
        content_of({"a": {"dtype": "F32", "shape": [1]}}, b"\x00" * 4),
        content_of({"a": {"dtype": "F32", "shape": None, "data_offsets": [0, 4]}}),
        content_of({"a": tensor(0, 4, dtype=None)}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, dtype=["F32"])}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, dtype={"x": 1})}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, dtype="F32\x00")}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, dtype="object")}, b"\x00" * 4),
        content_of({"a": tensor(0, 1, dtype="F8_E4M3", shape=[1])}, b"\x00"),
        content_of({"a": tensor(0, 4, shape="1")}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, shape=[-1])}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, shape=[1.0])}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, shape=[True])}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, shape=[[1]])}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, shape=[2])}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, shape=[2**62, 4])}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, shape=[2**63])}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, shape=[10**400])}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, shape=[2**62] * 5000)}, b"\x00" * 4),
        content_of({"a": tensor(0, 0, shape=[0, 2**62, 2**62])}),
        content_of({"a": tensor(0, 4, shape=[1] * 200)}, b"\x00" * 4),
        content_of({"a": tensor(4, 0, shape=[1])}, b"\x00" * 4),
        content_of({"a": tensor(-4, 0, shape=[1])}, b"\x00" * 4),
        content_of({"a": tensor(0, 4, shape=[1]) | {"data_offsets": [0, 4, 8]}}, b"\x00" * 8),
        content_of({"a": tensor(0, 4, shape=[1]) | {"data_offsets": "04"}}, b"\x00" * 8),
        content_of({"a": tensor(0, 2**63 - 8)}, b"\x00" * 4),
        content_of({"a": tensor(0, 8), "b": tensor(4, 12)}, b"\x00" * 12),  # overlapping
        content_of({"a": tensor(0, 8), "b": tensor(0, 8)}, b"\x00" * 8),  # the same place
        content_of({"a": tensor(0, 4), "b": tensor(8, 12)}, b"\x00" * 12),  # a hole
        content_of({"a": tensor(4, 8)}, b"\x00" * 8),  # a hole at the beginning
        content_of({"a": tensor(0, 4)}, b"\x00" * 8),  # bytes of no tensor
        content_of({"a": tensor(0, 8)}, b"\x00" * 4),  # truncated
        content_of(b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, '
                   b'"a": {"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"\x00" * 8),
        content_of({"__metadata__": {"a": 1}, "b": tensor(0, 4)}, b"\x00" * 4),
        content_of({"__metadata__": [], "b": tensor(0, 4)}, b"\x00" * 4),
        content_of({"__metadata__": "x", "b": tensor(0, 4)}, b"\x00" * 4),
    ],
    ids=lambda content: str(content[8:40])[:40],
)  # fmt: skip
def test_a_bad_file_is_refused(content: bytes, tmp_path: Path, attempt: Attempt) -> None:
    file = tmp_path / WEIGHTS
    file.write_bytes(content)
    if error := check(file, attempt):
        assert str(file) in str(error)


def test_pickles_archives_and_other_things_in_disguise(
    tmp_path: Path, attempt: Attempt
) -> None:
    mark = tmp_path / "harm"
    zeros = io.BytesIO()
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"\x00" * 20_000_000)
    torch_file = io.BytesIO()
    torch.save(Bomb(mark), torch_file)
    disguised = {
        "pickle": pickle.dumps(Bomb(mark)),
        "protocol-0": pickle.dumps(Bomb(mark), protocol=0),
        "torch": torch_file.getvalue(),
        "zip-bomb": zeros.getvalue(),
        "gzip-bomb": gzip.compress(b"\x00" * 20_000_000),
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "page": b"<!doctype html><script>alert(1)</script>",
        "hdf5": b"\x89HDF\r\n\x1a\n" + b"\x00" * 99,
    }
    for name, content in disguised.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(content)
        found, error = attempt(lambda folder=folder: Member.open(folder))  # type: ignore[misc]
        assert found is None, name
        assert "is not a safetensors file" in str(error) or "truncated" in str(error)
    assert not mark.exists()


def test_pipes_devices_and_folders_are_not_waited_for(tmp_path: Path, attempt: Attempt) -> None:
    for name in (WEIGHTS, "config.json", "member.json", "trainer_state.json"):
        for kind in ("pipe", "device", "folder"):
            folder = tmp_path / f"{name}-{kind}"
            folder.mkdir()
            place = folder / name
            if kind == "pipe":
                os.mkfifo(place)
            elif kind == "device":
                place.symlink_to("/dev/zero")
            else:
                place.mkdir()
            if name != WEIGHTS:
                (folder / WEIGHTS).write_bytes(content_of({"a": tensor(0, 4)}, b"\x00" * 4))
            attempt(lambda folder=folder: Member.open(folder))  # type: ignore[misc]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory, sound: Path) -> Path:
    """One member's folder whose files are spoiled again and again."""
    return shutil.copytree(sound / "step-0", tmp_path_factory.mktemp("scratch") / "step-0")


@settings(max_examples=150)
@given(data=st.data())
def test_flipped_bits(
    data: st.DataObject, scratch: Path, sound: Path, attempt: Attempt
) -> None:
    content = bytearray((sound / "step-0" / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, header + 8))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    (scratch / WEIGHTS).write_bytes(content)
    check(scratch / WEIGHTS, attempt)


@settings(max_examples=60)
@given(part=st.floats(0.0, 1.0, exclude_max=True))
def test_truncated_anywhere(part: float, scratch: Path, sound: Path, attempt: Attempt) -> None:
    content = (sound / "step-0" / WEIGHTS).read_bytes()
    (scratch / WEIGHTS).write_bytes(content[: int(part * len(content))])
    assert check(scratch / WEIGHTS, attempt) is not None


numbers = st.integers(-(2**65), 2**65) | st.sampled_from([0, 1, 4, 8, 12, 2**31, 2**62])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BOOL", "I64", "F4", "", None, 3]),
        "shape": st.lists(numbers | st.floats() | st.none(), max_size=4) | st.none(),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3) | st.text(max_size=3),
    }
)


@settings(max_examples=150)
@given(
    header=st.dictionaries(
        st.text(max_size=8), entries | st.none() | st.text(max_size=3), max_size=4
    ),
    data=st.binary(max_size=32),
)
def test_headers_of_any_values(
    header: dict[str, Any], data: bytes, scratch: Path, attempt: Attempt
) -> None:
    (scratch / WEIGHTS).write_bytes(content_of(header, data))
    check(scratch / WEIGHTS, attempt)


@settings(max_examples=60)
@given(places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4))
def test_places_that_overlap_or_leave_holes(
    places: list[tuple[int, int]], scratch: Path, attempt: Attempt
) -> None:
    header = {f"t{i}": tensor(4 * a, 4 * (a + n)) for i, (a, n) in enumerate(places)}
    (scratch / WEIGHTS).write_bytes(content_of(header, b"\x00" * 16))
    check(scratch / WEIGHTS, attempt)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
NAMES = ["step", "epoch", "files", "values", "trajectory", "base", "weight_map", "r",
         "lora_alpha", "alpha_pattern", "peft_type", "architectures", "vocab_size",
         "use_rslora", "init_lora_weights", "global_step", "text_config",
         "base_model_name_or_path", "revision", "auto_mapping", "task_type"]  # fmt: skip


@settings(max_examples=80)
@given(
    content=st.dictionaries(st.sampled_from(NAMES), json_values, max_size=5),
    which=st.integers(0, 3),
)
def test_json_beside_the_weights(
    content: dict[str, Any], which: int, sound: Path, attempt: Attempt,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    pool = shutil.copytree(sound, tmp_path_factory.mktemp("json") / "members")
    name = ("config.json", "member.json", "trainer_state.json", "model.safetensors.index.json")
    if which == 3:
        (pool / "step-0" / WEIGHTS).unlink()
    (pool / "step-0" / name[which]).write_text(json.dumps(content))
    found, error = attempt(lambda: MemberPool.open(pool))
    if error is None:
        assert found.members[0].nbytes == found.members[1].nbytes


@settings(max_examples=60)
@given(changes=st.dictionaries(st.sampled_from(NAMES), json_values, max_size=4))
def test_adapter_configurations(
    changes: dict[str, Any], adapter: Path, attempt: Attempt,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    folder = shutil.copytree(adapter, tmp_path_factory.mktemp("adapter") / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    found, error = attempt(lambda: AdapterMember.open(folder))
    if error is None:
        assert all(abs(m.scaling) < float("inf") for m in found.modules.values())
        attempt(lambda: found.sha256)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("member.json", {"step": 1, "epoch": 1, "files": {"../x": {"sha256": "", "bytes": 1}}},
         "outside of the folder"),
        ("member.json", {"step": 1, "epoch": 1, "files": {"/etc/passwd": {}}}, "outside"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../step-1/model.safetensors"}},
         "points outside"),
        ("model.safetensors.index.json", {"weight_map": {"a": "/etc/passwd"}},
         "points outside"),
        ("model.safetensors.index.json", {"weight_map": {"a": "x\x00y"}}, "points outside"),
        ("model.safetensors.index.json", {"weight_map": {"a": ".."}}, ""),
        ("model.safetensors.index.json", {"weight_map": {"a": ""}}, ""),
    ],
)  # fmt: skip
def test_no_name_leads_out_of_the_folder(
    name: str, content: Any, message: str, sound: Path, tmp_path: Path, attempt: Attempt
) -> None:
    pool = shutil.copytree(sound, tmp_path / "members")
    if "index" in name:
        (pool / "step-0" / WEIGHTS).unlink()
    (pool / "step-0" / name).write_text(json.dumps(content))
    _, error = attempt(lambda: MemberPool.open(pool))
    assert error is not None
    assert message in str(error)


@pytest.mark.parametrize(
    "pattern", [r"(\w+\.?)+!", "((a*)*)*b", "(", "[", "(?P<x>", "*", "a{99999999999}", "\x00"]
)
def test_patterns_of_an_adapter_come_to_an_end(
    pattern: str, adapter: Path, tmp_path: Path, attempt: Attempt
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "a")
    path = folder / "adapter_config.json"
    path.write_text(
        path.read_text()[:-1] + f', "alpha_pattern": {{{json.dumps(pattern)}: 3}}}}'
    )
    attempt(lambda: AdapterMember.open(folder))


@pytest.mark.parametrize("base", ["../../../etc", "/etc", "x\x00y", "a/b/c", "\x1b[2J", "."])
def test_a_base_model_by_a_strange_name(
    base: str, adapter: Path, tmp_path: Path, attempt: Attempt
) -> None:
    for i in (1, 2):
        folder = shutil.copytree(adapter, tmp_path / f"members/step-{i}")
        path = folder / "adapter_config.json"
        config = {**json.loads(path.read_text()), "base_model_name_or_path": base,
                  "task_type": "SEQ_CLS"}  # fmt: skip
        path.write_text(json.dumps(config))
    pool = MemberPool.of(sorted((tmp_path / "members").iterdir()))
    _, error = attempt(lambda: pool.tensors)
    assert isinstance(error, MemberError)
    assert "cannot be loaded" in str(error)


@pytest.mark.parametrize("name", ["pipeline", "AutoTokenizer", "torch", "__name__", "x" * 9999])
def test_an_adapter_names_a_model_and_no_other_part_of_a_library(
    name: str, adapter: Path, tmp_path: Path, attempt: Attempt
) -> None:
    for i in (1, 2):
        folder = shutil.copytree(adapter, tmp_path / f"members/step-{i}")
        path = folder / "adapter_config.json"
        config = {**json.loads(path.read_text()), "auto_mapping": {"base_model_class": name}}
        path.write_text(json.dumps(config))
    pool = MemberPool.of(sorted((tmp_path / "members").iterdir()))
    _, error = attempt(lambda: pool.tensors)
    assert "does not say of which class" in str(error)


@pytest.mark.parametrize(
    "name", ["step-²", "step-٣", "x\ny", "[red]x", "step-" + "9" * 200, "\x1b[2J"]
)
def test_folders_of_strange_names_are_members(
    name: str, sound: Path, tmp_path: Path, attempt: Attempt
) -> None:
    shutil.copytree(sound / "step-0", tmp_path / name)
    shutil.copytree(sound / "step-1", tmp_path / "step-1")
    found, error = attempt(lambda: inspect(tmp_path))
    assert error is None
    assert found.compatible
    result = CliRunner().invoke(app, ["members", str(tmp_path)])
    assert result.exit_code == 0
    assert "\x1b[2J" not in result.output


def test_the_command_line_has_one_message_and_no_traceback(sound: Path, tmp_path: Path) -> None:
    pool = shutil.copytree(sound, tmp_path / "members")
    (pool / "step-0" / WEIGHTS).write_bytes(content_of({"a": tensor(0, 8)}, b"\x00" * 4))
    result = CliRunner().invoke(app, ["members", str(pool)])
    assert result.exit_code == 2
    assert "is truncated" in result.output
    assert "Traceback" not in result.output


def test_a_manifest_of_huge_numbers(sound: Path, tmp_path: Path, attempt: Attempt) -> None:
    for number in ("1e999", "-1e999", "NaN", "1" + "0" * 5000, "null", '"x"', "[]"):
        text = f'{{"step": {number}, "epoch": {number}, "files": {{}}}}'
        (tmp_path / "member.json").write_text(text)
        _, error = attempt(lambda: read_manifest(tmp_path))
        assert error is not None, number
