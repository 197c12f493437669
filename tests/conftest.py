from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# How long an example takes says something of the machine, not of the code.
hypothesis.settings.register_profile("fusetune", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fusetune")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets, which lie beside the project on some machines only."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared with the real data sets is not here")
    return folder


@pytest.fixture(autouse=True)
def _own_state(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test remembers, or finds, a consent of the user who runs the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    """No test depends on the random state that another one left behind."""
    torch.manual_seed(0)
