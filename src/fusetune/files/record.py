"""Reading the JSON records of a run folder: whole and of the right shape, or one message.

A record may be torn by a full disk, edited by hand, or of somebody who handed the folder over.
What uses one must never meet a shape that it does not expect.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from fusetune.errors import RunError

T = TypeVar("T")

MAX_BYTES = 2**28
"""More than any record has: a larger file would only fill the memory."""

REMOVE = "Remove it and run the same command again: what it said is then made anew."


class Shape(BaseModel):
    """Base of the shapes of records: other keys may stand there too, numbers are finite."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def regular(path: Path) -> os.stat_result:
    """The status of an ordinary file; a pipe or a device would block, or never end.

    Raises:
        OSError: If there is none, or it is not an ordinary file.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not an ordinary file", str(path))
    return found


def _inside(name: str) -> str:
    if Path(name).name != name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in its folder")
    return name


FileName = Annotated[str, AfterValidator(_inside)]
"""A name that a record gives: never a way to another folder."""


def shaped(shape: type[Shape]) -> Callable[[Any], dict[str, Any]]:
    """For `read_record`: the content as it stands, once it is known to have a shape."""

    def parse(content: Any) -> dict[str, Any]:
        shape.model_validate(mapping(content))
        found: dict[str, Any] = content
        return found

    return parse


def read_record(
    path: Path, parse: Callable[[Any], T], advice: str = REMOVE, *, finite: bool = True
) -> T | None:
    """Read a record; None if there is none.

    Args:
        path: The file.
        parse: JSON → the result; whatever it raises for another shape is a damaged record.
        advice: What to do about one that is damaged; doing it has to work.
        finite: Whether NaN and infinity, which JSON lacks, are damage too.

    Raises:
        RunError: If the file cannot be read, is no JSON, or has another shape.
    """
    try:
        if regular(path).st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        content = json.loads(path.read_bytes(), parse_constant=_no_number if finite else None)
        return parse(content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as problem:
        torn = isinstance(problem, OSError | json.JSONDecodeError | UnicodeDecodeError)
        what = "cannot be read" if torn else "is damaged"
        raise RunError(f"{path} {what}: {words(problem)}.", advice) from problem


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it has the number {text}")


def words(problem: Exception) -> str:
    """The fault of a record in words for its user: no names of libraries and their errors."""
    if isinstance(problem, ValidationError):
        first = problem.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where or 'the whole'}: {first['msg'].removeprefix('Value error, ')}"
    if isinstance(problem, KeyError):
        return f"it lacks {problem}"
    if isinstance(problem, RecursionError):
        return "it is nested too deep"
    return str(getattr(problem, "strerror", None) or problem) or "it has another shape"


def mapping(content: Any) -> Mapping[str, Any]:
    """The content, if it is a JSON object.

    Raises:
        TypeError: If it is something else.
    """
    if not isinstance(content, Mapping):
        kinds = {type(None): "null", list: "a list", str: "a text", bool: "true or false"}
        raise TypeError(f"it holds {kinds.get(type(content), 'a number')} and no object")
    return content
