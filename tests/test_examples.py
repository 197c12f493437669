"""The example scripts do what they say, on a small scale."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the example's data come with scikit-learn")
    command = [sys.executable, str(ROOT / "examples/digits.py"), "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--steps", "60"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    validation = {name: float(words[2]) for name, words in lines.items() if "test" in words}
    assert validation["mobo"] >= max(validation["finetune"], validation["swa"])
    assert (tmp_path / "fused/model.safetensors").is_file()
    assert "Digits" in (tmp_path / "report.html").read_text(encoding="utf-8")
