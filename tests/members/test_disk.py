from __future__ import annotations

from pathlib import Path

import pytest

from fusetune.errors import StageError
from fusetune.members.disk import full_disk_is_an_error, is_disk_full


def test_a_full_disk_is_found_behind_wrappers() -> None:
    wrapper = RuntimeError("could not save")
    wrapper.__cause__ = OSError(28, "No space left on device")
    assert is_disk_full(wrapper)
    assert is_disk_full(RuntimeError("PytorchStreamWriter failed writing file data/0"))
    assert not is_disk_full(RuntimeError("something else"))


def test_a_full_disk_becomes_one_clear_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StageError, match="The disk became full while writing to"),
        full_disk_is_an_error(tmp_path),
    ):
        raise OSError(28, "No space left on device")
    with pytest.raises(ValueError, match="else"), full_disk_is_an_error(tmp_path):
        raise ValueError("something else")
