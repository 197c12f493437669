"""Members at a URL, copied here once; the store is fsspec's own in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save

from fusetune.errors import MemberError
from fusetune.members import fetch
from fusetune.members.checkpoints.steps import checkpoint_of
from fusetune.members.discover import find_members
from fusetune.members.pool import MemberPool, inspect

STORE = fsspec.filesystem("memory")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(fetch.CACHE, str(tmp_path / "cache"))
    for step in (9, 10, 100):
        put(step, float(step))
    STORE.pipe("/bucket/run/logs/events.txt", b"nothing of a model")
    yield "memory://bucket/run"
    STORE.rm("/bucket", recursive=True)


def put(step: int, value: float) -> None:
    folder = f"/bucket/run/checkpoint-{step}"
    STORE.pipe(f"{folder}/model.safetensors", save({"w": torch.full((3,), value)}))
    STORE.pipe(f"{folder}/config.json", json.dumps({"model_type": "bert"}).encode())
    STORE.pipe(f"{folder}/optimizer.pt", b"large, pickled, and none of our business")


def cached(tmp_path: Path) -> list[str]:
    files = (tmp_path / "cache").rglob("*")
    return sorted(path.name for path in files if path.is_file() and path.suffix != ".lock")


def test_members_are_found_in_order_and_can_be_fused(bucket: str, tmp_path: Path) -> None:
    for wanted in (bucket, f"{bucket}/checkpoint-*"):
        pool = MemberPool.open(wanted)
        assert pool.names == ("checkpoint-9", "checkpoint-10", "checkpoint-100")
        assert [float(pool.load_tensor(i, "w")[0]) for i in range(3)] == [9.0, 10.0, 100.0]
    assert find_members(f"{bucket}/checkpoint-10").folders[0].name == "checkpoint-10"
    names = ["config.json", "model.safetensors", "source.json"]
    assert cached(tmp_path) == sorted(3 * names)  # once, and no optimiser
    first = pool.members[0].path
    assert fetch.source_of(first) == "memory:///bucket/run/checkpoint-9"
    assert fetch.source_of(tmp_path) is None


def test_all_that_belongs_to_a_model_is_fetched(bucket: str) -> None:
    along = ("source.spm", "bpe.codes", "2_Dense/model.safetensors", "preprocessor_config.json")
    stays = ("rng_state.pth", "v/head.bin", "runs/events", "global_step3/model.safetensors")
    for name in (*along, *stays):
        STORE.pipe(f"/bucket/run/checkpoint-9/{name}", b"{}")
    folder = fetch.fetch(f"{bucket}/checkpoint-9")
    there = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert there == {"config.json", "model.safetensors", *along}


def test_what_was_fetched_is_not_fetched_again_until_it_changes(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/checkpoint-9"
    before = fetch.fetch(url)
    with monkeypatch.context() as patch:
        patch.setattr(STORE, "get_file", lambda *a, **k: pytest.fail("fetched again"))
        assert fetch.fetch(url) == before
    put(9, 0.5)
    after = fetch.fetch(url)
    assert after != before
    assert after.name == before.name == "checkpoint-9"


def test_a_fetch_that_is_cut_off_leaves_nothing_that_looks_whole(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(remote: str, local: str) -> None:
        Path(local).write_bytes(b"half")
        raise OSError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(STORE, "get_file", cut)
        with pytest.raises(MemberError, match=r"cannot be read: OSError: connection reset"):
            fetch.fetch(f"{bucket}/checkpoint-9")
    with monkeypatch.context() as patch:
        patch.setattr(STORE, "get_file", lambda remote, local: Path(local).write_bytes(b"x"))
        with pytest.raises(MemberError, match=r"came with 1 bytes in the place of \d+"):
            fetch.fetch(f"{bucket}/checkpoint-9")
    assert cached(tmp_path) == []
    assert (fetch.fetch(f"{bucket}/checkpoint-9") / "model.safetensors").stat().st_size > 4


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/run/logs", "No checkpoint at memory://bucket/run/logs"),
        ("memory://bucket/nowhere", "memory://bucket/nowhere cannot be read"),
        ("memory://bucket/run/epoch-*", "No checkpoint at"),
        ("carrier-pigeon://loft", "Protocol not known: carrier-pigeon"),
    ],
)
def test_what_cannot_be_had_is_said(bucket: str, url: str, message: str) -> None:
    with pytest.raises(MemberError) as info:
        find_members(url)
    assert message in str(info.value)


def test_what_is_no_whole_checkpoint_is_named(bucket: str) -> None:
    STORE.pipe("/bucket/run/checkpoint-200/model-00001-of-00002.safetensors", b"x")
    for wanted in (bucket, f"{bucket}/checkpoint-*"):
        found = inspect(wanted)
        assert [path.name for path in found.incomplete] == ["checkpoint-200"]
        assert "shards without their index" in found.notes[0]
        assert len(found.members) == 3
    with pytest.raises(MemberError, match=r"(?s)No checkpoint at.*shards without their index"):
        find_members(f"{bucket}/checkpoint-2*")


def test_single_files_and_adapters_with_a_name(bucket: str) -> None:
    for epoch in (2, 10):
        state = save({"w": torch.full((3,), float(epoch))})
        STORE.pipe(f"/bucket/files/epoch{epoch}.safetensors", state)
        folder = f"/bucket/adapters/checkpoint-{epoch}"
        STORE.pipe(f"{folder}/sft/adapter_model.safetensors", state)
        STORE.pipe(f"{folder}/optimizer.pt", b"none of our business")
    for wanted in ("memory://bucket/files", "memory://bucket/files/epoch*.safetensors"):
        pool = MemberPool.open(wanted)
        assert pool.names == ("epoch2.safetensors", "epoch10.safetensors")
        assert [float(pool.load_tensor(i, "w")[0]) for i in range(2)] == [2.0, 10.0]
        first = fetch.source_of(pool.members[0].path)
        assert first == "memory:///bucket/files/epoch2.safetensors"
    for wanted in ("memory://bucket/adapters", "memory://bucket/adapters/checkpoint-*"):
        folders = find_members(wanted).folders
        assert [checkpoint_of(folder).name for folder in folders] == [
            "checkpoint-2",
            "checkpoint-10",
        ]
        source = fetch.source_of(folders[0])
        assert source == "memory:///bucket/adapters/checkpoint-2/sft"
        assert fetch.fetch(source) == folders[0]
