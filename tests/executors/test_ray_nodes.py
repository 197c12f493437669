"""A cluster of several nodes on this machine, of which one is lost in the middle of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_node_is_lost_and_nothing_with_it() -> None:
    command = [sys.executable, "-m", "benchmarks.ray_nodes", "--trials", "12", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["trials"] == found["complete"] == 12
    assert found["lost"] == found["doubled"] == found["wrong"] == 0
    assert found["tried_again"] >= 1
