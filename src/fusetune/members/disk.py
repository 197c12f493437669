"""Writing that survives a kill: space checked first, synced, put in place in one step."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fusetune.errors import StageError, StorageError

MARGIN = 32 * 2**20  # bytes left free: configuration, tokenizer, the file system's own needs


def require_space(folder: str | Path, needed: int, margin: int = MARGIN) -> None:
    """Check that `needed` bytes can be written under `folder`, which may not exist yet.

    Raises:
        StageError: If the file system has less than `needed + margin` bytes free.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed + margin:
        raise StageError(
            f"Writing to {folder} needs {needed + margin:,} bytes, "
            f"but {free:,} bytes are free on that disk.",
            hint="Free some space, or choose another folder.",
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is at the root of an error; libraries wrap it in their own."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        # safetensors and PyTorch's writer tell it in words only.
        if any(
            words in str(error) for words in ("No space left", "PytorchStreamWriter failed")
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def full_disk_is_an_error(folder: str | Path) -> Iterator[None]:
    """Turn "no space left" raised inside the block into a `StorageError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, StageError) or not is_disk_full(error):
            raise
        free = shutil.disk_usage(Path(folder).absolute().anchor).free
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
        raise StorageError(
            f"The disk became full while writing to {folder} ({free:,} bytes free).",
            hint="Free some space and run the same command again; nothing else was lost.",
        ) from error


def without_links(path: str, flags: int) -> int:
    """An opener for `open` that refuses a link or a pipe in the place of the file.

    Raises:
        OSError: If it is no ordinary file.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not an ordinary file", path)
    return descriptor


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that `path` holds either the old content or the new, never a part.

    Raises:
        ValueError: If the content has a number that JSON lacks (NaN, infinity).
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that `path` holds either the old text or the new, never a part."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give a temporary sibling to write; it becomes `path`, durably, when the block ends."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # a link of that name would be written through
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait for a lock that processes of one machine, or of one shared disk, respect.

    Released when the process ends, however it ends.
    """
    with open(file, "a", opener=without_links) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary sibling to write into; it becomes `folder` when the block ends.

    An existing folder is moved aside first and removed afterwards, so that no moment
    shows a mixture of old and new files. If the block raises, `folder` stays as it was.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    remove(new)  # left by a process that was killed
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    remove(old)
    new.mkdir()
    try:
        yield new
        for path in sorted(new.rglob("*")):
            sync(path)
        sync(new)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        sync(folder.parent)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        remove(new)
        remove(old)


def link(source: str | Path, target: str | Path) -> None:
    """Give a file that is never changed in place a second name, or copy it where that fails.

    Nothing happens if the target is there already.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:  # another device, or a file system without links
        shutil.copy2(source, target)
