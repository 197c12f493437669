"""Transfers of a protocol: stored, pooled, and a section of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import transfer
from benchmarks.protocols import page


def trial(
    number: int, light: float, full: float, member: float, fused: float
) -> dict[str, Any]:
    values = {"light": light, "full": full, "best_member": member, "fused": fused}
    return {"number": number, "params": {}, "light_loss": 0.5, "reason": "", **values}


def test_correlations_are_pooled_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [trial(0, 0.3, 0.5, 0.5, 0.74), trial(1, 0.2, 0.4, 0.6, 0.75)]
    trials.append(trial(2, 0.1, 0.3, 0.7, 0.76))
    content = {"protocol": "b", "task": "mrpc", "seed": 41, "metric": "f1", "epochs": 1.0}
    (tmp_path / "transfer").mkdir()
    file = tmp_path / "transfer" / "b-mrpc-41.json"
    settings = ["model.precision=float32"]
    file.write_text(json.dumps({**content, "settings": settings, "trials": trials}))
    transfer.main(["--json", "--results", str(tmp_path)])
    assert json.loads(capsys.readouterr().out) == {
        "comparisons": 1,
        "light_full": pytest.approx(1.0),
        "light_fused": pytest.approx(-1.0),
        "member_fused": pytest.approx(1.0),
    }
    text = page.page([], transferred=[json.loads(file.read_text())])
    assert "| MRPC | 41 | 3 | 1 | +1.00 | -1.00 | +1.00 | 2.00 |" in text
    assert "| mean |  |  |  | +1.00 | -1.00 | +1.00 | 2.00 |" in text
    command = "benchmarks.transfer --protocol b --tasks mrpc --seeds 41 --trials 3"
    assert f"\npython -m {command} --precision float32\n" in text
    assert "Nothing is stored; `python -m benchmarks.transfer" in page.page([])
