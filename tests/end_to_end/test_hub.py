"""Publishing to a server that speaks the Hub's protocol, by the real huggingface_hub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard, constants
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.run import RunFolder

TOKEN = "hf_theTokenThatNobodyMaySee0123456789"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: git blobs in the commit itself, large files over LFS.

    Attributes:
        repos: Name → visibility.
        files: Name of the repository → path → content, of its last commit.
        stored: SHA-256 → content, of LFS.
        commits: Repository and summary of each commit.
        breaks: What the storage of large files answers in the place of 200.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[str, str] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}
        self.commits: list[tuple[str, str]] = []
        self.breaks: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            return self.reply({"name": "me", "type": "user"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/main", self.path):
            repo = found[1]
            return self.reply({"id": repo, "sha": f"{len(self.server.commits):040x}"})
        return self.reply({"error": f"no {self.path}"}, 404)

    def do_PUT(self) -> None:
        # As with any bucket: no token, the address is the permission.
        body = self.body()
        oid = self.path.rpartition("/")[2]
        if self.server.breaks is not None:
            return self.reply({}, self.server.breaks, checked=False)
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.stored[oid] = body
        return self.reply({}, checked=False)

    def do_POST(self) -> None:
        body, hub = self.body(), self.server
        if self.path == "/api/validate-yaml":
            ModelCard(json.loads(body)["content"])
            return self.reply({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "me":
                return self.reply({"error": "You don't have the rights to create it."}, 403)
            status = 409 if repo in hub.repos else 200
            hub.repos.setdefault(repo, asked.get("visibility", "public"))
            return self.reply({"url": f"{hub.address}/{repo}"}, status)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            return self.reply(
                {"files": [self.mode(found[1], f) for f in json.loads(body)["files"]]}
            )
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self.reply(
                {"objects": [self.action(o) for o in json.loads(body)["objects"]]}
            )
        if self.path == "/verify":
            asked = json.loads(body)
            right = len(hub.stored[asked["oid"]]) == asked["size"]
            return self.reply({}, 200 if right else 422)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            return self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        return self.reply({"error": f"no {self.path}"}, 404)

    def mode(self, repo: str, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular"}
        there = self.server.files.get(repo, {}).get(file["path"])
        if there is not None:
            blob = b"blob %d\0" % len(there) + there
            hashed = hashlib.sha256(there) if large else hashlib.sha1(blob)
            answer["oid"] = hashed.hexdigest()
        return {**answer, "shouldIgnore": False}

    def action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.server.stored:
            return wanted
        upload = {"href": f"{self.server.address}/storage/{wanted['oid']}"}
        verify = {"href": f"{self.server.address}/verify"}
        return {**wanted, "actions": {"upload": upload, "verify": verify}}

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        head, *changes = lines
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                content = base64.b64decode(value["content"])
            else:
                assert change["key"] == "lfsFile"
                content = self.server.stored[value["oid"]]
            self.server.files.setdefault(repo, {})[value["path"]] = content
        self.server.commits.append((repo, head["value"]["summary"]))
        oid = f"{len(self.server.commits):040x}"
        address = f"{self.server.address}/{repo}/commit/{oid}"
        self.reply({"commitUrl": address, "commitOid": oid})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, content: Any, status: int = 200, *, checked: bool = True) -> None:
        given = self.headers.get("Authorization", "")
        if checked and given != f"Bearer {TOKEN}":
            status, content = 401, {"error": f"Invalid credentials: {given}"}
        made = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(made)))
        self.end_headers()
        self.wfile.write(made)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()


def push(run: RunFolder, *options: str, repo: str = "me/model") -> Any:
    return CliRunner().invoke(app, ["push", str(run.path), repo, *options])


def test_what_arrives_is_what_the_dry_run_lists(quick_run: RunFolder, hub: Hub) -> None:
    options = ("--license", "apache-2.0", "--base-model", "org/base")
    listed = push(quick_run, *options, "--dry-run").output
    assert hub.repos == {}
    result = push(quick_run, *options, "--private")
    assert result.exit_code == 0, result.output
    assert f"{hub.address}/me/model" in result.output
    assert hub.repos == {"me/model": "private"}
    assert hub.commits == [("me/model", "Upload the fused model (fusetune)")]
    arrived = hub.files["me/model"]
    sizes = re.findall(r"^ *([\d,]+)  (\S+)$", listed, flags=re.MULTILINE)
    assert {name: int(size.replace(",", "")) for size, name in sizes} == {
        name: len(content) for name, content in arrived.items()
    }
    for file in quick_run.fused.iterdir():
        if file.name != "README.md":
            assert arrived[file.name] == file.read_bytes()
    assert listed.startswith(arrived["README.md"].decode())
    assert TOKEN not in result.output + listed


def test_the_card_that_arrives_can_be_read_by_the_hub(quick_run: RunFolder, hub: Hub) -> None:
    assert push(quick_run, "--base-model", "org/base").exit_code == 0
    data: Any = ModelCard(hub.files["me/model"]["README.md"].decode()).data
    assert data.base_model == "org/base"
    assert set(data.tags) == {"merge", "fusetune"}
    assert data.library_name == "transformers"
    results = json.loads(quick_run.results.read_text())
    measured = results["methods"][results["chosen"]]
    assert data.eval_results
    for found in data.eval_results:
        assert isinstance(found, EvalResult)
        known = measured[found.dataset_split][found.metric_type]["value"]
        assert found.metric_value == pytest.approx(known, abs=1e-4)


def test_a_second_push_sends_nothing_twice(quick_run: RunFolder, hub: Hub) -> None:
    assert push(quick_run).exit_code == 0
    assert push(quick_run).exit_code == 0
    assert len(hub.commits) == 1


def test_a_wrong_token(quick_run: RunFolder, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = TOKEN[::-1]
    monkeypatch.setenv("HF_TOKEN", wrong)
    result = push(quick_run)
    assert result.exit_code == 2
    assert "The Hub refuses me/model: Invalid user token" in result.output
    assert "hf auth login" in result.output
    assert wrong not in result.output
    assert hub.repos == {}


def test_a_place_of_somebody_else(quick_run: RunFolder, hub: Hub) -> None:
    result = push(quick_run, repo="you/model")
    assert result.exit_code == 2
    assert "The Hub refuses you/model" in result.output
    assert "You don't have the rights" in result.output
    assert "a token that may write" in result.output


def test_a_hub_that_cannot_be_reached(quick_run: RunFolder, hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    result = push(quick_run)
    assert result.exit_code == 2
    assert f"The Hub cannot be reached at {hub.address}" in result.output
    assert TOKEN not in result.output


@pytest.mark.parametrize("status", [403, 400])
def test_a_storage_that_fails(quick_run: RunFolder, hub: Hub, status: int) -> None:
    hub.breaks = status
    result = push(quick_run)
    assert result.exit_code == 2, result.exception
    assert "model.safetensors" in result.output
    assert hub.commits == []
    hub.breaks = None
    assert push(quick_run).exit_code == 0
    assert "model.safetensors" in hub.files["me/model"]


def test_a_hub_whose_storage_is_xet_fails_as_clearly(
    quick_run: RunFolder, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet", reason="needs hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    result = push(quick_run)  # this server has no such storage
    assert result.exit_code == 2, result.exception
    assert "me/model" in result.output
    assert TOKEN not in result.output
    assert hub.commits == []
