from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.pipeline import push as publishing
from fusetune.run import RunFolder

TOKEN = "hf_a_secret_that_nobody_may_see"


class FakeApi:
    """The part of `HfApi` that is used; it keeps what it was asked for."""

    calls: ClassVar[list[tuple[str, Any]]] = []
    refuses = False

    def __init__(self, token: str) -> None:
        assert token == TOKEN

    def whoami(self) -> dict[str, str]:
        if self.refuses:
            response: Any = SimpleNamespace(status_code=401, headers={}, request=None)
            raise HfHubHTTPError(f"401: invalid {TOKEN}", response=response)
        return {"name": "me"}

    def create_repo(self, repo: str, **settings: Any) -> str:
        self.calls.append((repo, settings))
        return f"https://huggingface.co/{repo}"

    def create_commit(self, repo: str, operations: list[Any], **settings: Any) -> None:
        self.calls.append((repo, operations))


@pytest.fixture
def finished(quick_run: RunFolder) -> RunFolder:
    return quick_run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    monkeypatch.setattr(publishing, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    return FakeApi


def fusetune(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_a_dry_run_shows_card_and_files(finished: RunFolder) -> None:
    result = fusetune(
        "push", str(finished.path), "me/model", "--dry-run", "--license", "apache-2.0"
    )
    assert result.exit_code == 0
    card = ModelCard(result.output[: result.output.index("`fusion.json` has")])
    assert card.data.license == "apache-2.0"
    assert set(card.data.tags) == {"merge", "fusetune"}
    assert card.data.model_name == "model"
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert set(found) == {
        (split, metric)
        for split in ("validation", "test")
        for metric in ("loss", "accuracy", "matthews_correlation")
    }
    assert 'from_pretrained("me/model")' in card.text
    assert "tiny" not in card.text.partition("## Use")[2].partition("## Results")[0]
    size = (finished.fused / "model.safetensors").stat().st_size
    assert f"{size:,}  model.safetensors" in result.output
    assert "names no base model" in result.output  # a folder is none on the Hub
    private = str(finished.path.parents[1])  # where models, data and runs are here
    assert private not in result.output
    for file in finished.fused.glob("*.json"):
        assert private not in file.read_text()


def test_everything_goes_in_one_commit(finished: RunFolder, hub: type[FakeApi]) -> None:
    result = fusetune(
        "push", str(finished.path), "me/model", "--private", "--base-model", "org/base"
    )
    assert result.exit_code == 0
    assert "https://huggingface.co/me/model" in result.output
    (_, settings), (_, operations) = hub.calls
    assert settings == {"private": True, "exist_ok": True}
    sent = {o.path_in_repo: o.path_or_fileobj for o in operations}
    assert set(sent) == {f.name for f in finished.fused.iterdir()}
    assert b"base_model: org/base" in sent["README.md"]
    assert b"model-index" in sent["README.md"]


def test_an_exported_folder_is_published_too(
    finished: RunFolder, hub: type[FakeApi], tmp_path: Path
) -> None:
    shutil.copytree(finished.fused, tmp_path / "mine")
    assert fusetune("push", str(tmp_path / "mine"), "me/model").exit_code == 0
    result = fusetune("push", str(tmp_path), "me/model")
    assert result.exit_code == 2
    assert "holds no fused model" in result.output


def test_without_a_token(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(publishing, "HfApi", lambda **_: pytest.fail("asked the Hub"))
    result = fusetune("push", str(finished.path), "me/model")
    assert result.exit_code == 2
    assert "hf auth login" in result.output


def test_a_refusal_never_shows_the_token(
    finished: RunFolder, hub: type[FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "refuses", True)
    result = fusetune("push", str(finished.path), "me/model")
    assert result.exit_code == 2
    assert "The Hub refuses me/model" in result.output
    assert TOKEN not in result.output
    assert hub.calls == []


@pytest.mark.parametrize("name", ["model", "me/mo del", "me/x/y"])
def test_a_name_that_can_be_no_repository(finished: RunFolder, name: str) -> None:
    result = fusetune("push", str(finished.path), name, "--dry-run")
    assert result.exit_code == 2
    assert "user/name" in result.output
