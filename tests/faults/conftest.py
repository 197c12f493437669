"""Bad input: every one is a clear error or a right result, soon, and harms nothing else."""

from __future__ import annotations

import json
import signal
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fusetune.errors import FusetuneError

PATIENCE = 10  # seconds of computing; waiting for something counts up to six times as long

Attempt = Callable[[Callable[[], Any]], tuple[Any, FusetuneError | None]]


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"not done after {PATIENCE} s")

    before = [signal.signal(kind, stop) for kind in (signal.SIGALRM, signal.SIGPROF)]
    signal.alarm(6 * PATIENCE)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for kind, handler in zip((signal.SIGALRM, signal.SIGPROF), before, strict=True):
            signal.signal(kind, handler)


def _attempt(call: Callable[[], Any]) -> tuple[Any, FusetuneError | None]:
    """(Result, None) or (None, the user's error); any other exception is a failure."""
    with no_hang():
        try:
            return call(), None
        except FusetuneError as error:
            told = error
    assert told.message.strip()
    assert all(unicodedata.category(c) != "Cc" or c in "\n\t" for c in str(told))
    return None, told


def weights(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(3, 4, generator=draw),
        "layer.bias": torch.randn(3, generator=draw).half(),
        "position": torch.arange(4),
    }


def make_member(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    save_file(weights(seed), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "hidden_size": 4}))
    return folder


def make_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    name = "base_model.model.encoder.query.lora_"
    tensors = {f"{name}A.weight": torch.randn(2, 4, generator=draw),
               f"{name}B.weight": torch.randn(4, 2, generator=draw)}  # fmt: skip
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "x"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def attempt() -> Attempt:
    """Call what must end soon, in a result or in an error of the user's."""
    return _attempt


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two whole models that can be averaged, small and sound."""
    folder = tmp_path_factory.mktemp("sound") / "members"
    for seed in (0, 1):
        make_member(folder / f"step-{seed}", seed)
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound LoRA adapter."""
    return make_adapter(tmp_path_factory.mktemp("adapter") / "adapter")
