"""What a recipe names must not get the user's secrets, or make this machine run code."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from fusetune.errors import FusetuneError, MemberError, RecipeError, RunError
from fusetune.members.fetch import fetch, find_elsewhere
from fusetune.optimization.storage import HOST, PASSWORD, open_existing, open_storage
from fusetune.recipe_file import load, parse

RECIPE = """
task: {data: d, text: [a], metrics: [accuracy]}
model: {name: m}
search: {trials: 0}
"""
URL = "postgresql://me@evil.example/x"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (HOST, PASSWORD, "PGHOST", "PGPASSWORD", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def refused(url: str) -> str:
    with pytest.raises(RunError) as info:
        open_storage(url, patience=0)
    return str(info.value)


@pytest.mark.parametrize("variable", [PASSWORD, "PGPASSWORD"])
def test_a_password_goes_to_a_host_that_the_user_names(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "correct-horse")
    asked = f"name it: {HOST}="
    monkeypatch.setenv(HOST, "mine.example, 127.0.0.1:5432")
    for url in (
        URL,
        "postgresql://me@127.0.0.1:15433/x",
        "postgresql://me@mine.example/x?host=evil.example",
        "postgresql://me@mine.example/x?hostaddr=10.0.0.9",
        "postgresql://me@/x?host=mine.example:5432&host=evil.example:5432",
        "postgresql://me@/x?host=mine.example,evil.example",
        "postgresql://me@mine.example/x?service=evil",
        "postgresql://me@mine.example.evil.example/x",
        "postgresql+nodriver://me@evil.example/x",
    ):
        assert asked in refused(url), url
        assert "correct-horse" not in refused(url)
    with pytest.raises(RunError, match="name it"):  # a run folder's, for `fusetune studies`
        open_existing(URL)


def test_the_named_host_and_the_own_machine_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "correct-horse")
    monkeypatch.setenv(HOST, "mine.example:15433,Other.Example")
    for url in (
        "postgresql+nodriver://me@mine.example:15433/x",
        "postgresql+nodriver://me@other.example:1/x",
        "postgresql+nodriver://me@/x?host=/var/run/postgresql",
        "postgresql+nodriver://me:own@evil.example/x",  # has a password of its own
    ):
        assert "name it" not in refused(url), url
    monkeypatch.delenv(PASSWORD)
    assert "name it" not in refused("postgresql+nodriver://me@evil.example/x")


def test_a_database_of_something_else_gets_no_tables(tmp_path: Path) -> None:
    file = tmp_path / "places.sqlite"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    before = file.read_bytes()
    for opening in (open_storage, open_existing):
        with pytest.raises(
            RunError, match=r"database of something else: it has the tables book"
        ):
            opening(f"sqlite:///{file}")
    assert file.read_bytes() == before
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(RunError):  # for reading, none are made
        open_existing(f"sqlite:///{empty}")
    assert empty.stat().st_size == 0
    assert open_storage(f"sqlite:///{empty}").get_all_studies() == []


@pytest.mark.parametrize("address", ["auto", "ray://evil:10001", "evil:6379"])
def test_a_file_names_no_cluster(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{RECIPE}executor: {{kind: ray, address: '{address}'}}\n"
    with pytest.raises(RecipeError, match=r"say so yourself: executor.address="):
        parse(text)
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match="names the cluster"):
        load(file, ["executor.kind=ray"])
    said = parse(text, [f"executor.address={address}"])
    assert (said.executor.model_extra or {})["address"] == address
    assert "address:" not in said.to_yaml()  # nor does a run folder
    assert parse(said.to_yaml()).executor.kind == "ray"
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert parse(text).executor.kind == "ray"


@pytest.mark.parametrize(
    "url",
    [
        "reference://::data:application/json;base64,e30=", "zip://x::s3://bucket/a.zip",
        "simplecache::s3://bucket/run", "github://a:b@/x", "http://evil.example/run",
        "s3://bucket/run::memory://x", "REFERENCE://x", "dir://x", "data://x", "git://x",
        "filecache://x", "libarchive://x", "ssh://evil/x", "memory://a::reference://x",
    ],
)  # fmt: skip
def test_only_stores_of_files_are_opened_by_a_url(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("fsspec was asked")

    monkeypatch.setattr("fusetune.members.fetch.url_to_fs", never)
    for opening in (find_elsewhere, fetch):
        with pytest.raises(
            MemberError, match=r"cannot be read: (Protocol not known|it is a chain)"
        ):
            opening(url)
    assert not os.path.exists("x")
    assert issubclass(MemberError, FusetuneError)
