"""Several processes evaluate one model, which may be spread over them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("gpt2", "llama", "t5", "bart")


@pytest.mark.slow
def test_models_that_are_spread_give_the_values_of_whole_ones(tmp_path: Path) -> None:
    script = ROOT / "tests" / "evaluation" / "spread_models.py"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(tmp_path), *KINDS],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines() == [f"{kind} the same" for kind in KINDS]
