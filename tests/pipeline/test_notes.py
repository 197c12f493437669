"""What a run warns of before it computes."""

from __future__ import annotations

import pytest
import torch

from fusetune.pipeline import notes


def test_a_precision_that_is_only_emulated_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for emulated in (True, False):
        monkeypatch.setattr(notes, "emulated", lambda *_, found=emulated: found)
        found = notes.of_precision("bfloat16", torch.device("cpu"))
        assert len(found) == emulated
        assert all("only emulates bfloat16" in text for text in found)
