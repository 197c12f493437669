"""YAML of recipes: a safe loader with limits, so that a file can ask for no more than it is.

Only plain data can come out of it: mappings, lists, texts, numbers, dates. Anchors are
allowed, but a few of them can stand for billions of values, so that what counts is the size
of the tree once every alias is written out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fusetune.errors import RecipeError

MAX_BYTES = 200_000
MAX_VALUES = 10_000
MAX_DEPTH = 32
MAX_INTEGER = 2**63


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but `1e-5` is a number and `on`, `off`, `yes`, `no` stay what they are."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, counted while it is read: nothing much larger is ever built."""
        self._values += 1
        self._depth += 1
        if self._values > MAX_VALUES:
            raise _TooMuchError(f"it has more than {MAX_VALUES:,} values")
        if self._depth > MAX_DEPTH:
            raise _TooMuchError(f"it is nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number that can still be written out."""
        value: int = super().construct_yaml_int(node)
        if abs(value) > MAX_INTEGER:
            line = node.start_mark.line + 1
            raise _TooMuchError(f"the whole number in line {line} is beyond ±2^63")
        return value


class _TooMuchError(yaml.YAMLError):
    """A limit is exceeded."""


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def read_text(path: Path) -> str:
    """The text of a YAML file; no more than its limit is ever read.

    Raises:
        RecipeError: If it cannot be read, or is too long.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8") if len(content) <= MAX_BYTES else None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}.") from error
    if text is None:
        raise _too_long(str(path))
    return text


def read_yaml(text: str, name: str) -> Any:
    """What a YAML text says, as plain data.

    Args:
        text: Of at most 200,000 bytes, with 10,000 values at most 32 levels deep, aliases
            written out.
        name: How messages call it.

    Raises:
        RecipeError: If it is no YAML, exceeds a limit, or has a value that is none.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _too_long(name)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, set())
        return loader.construct_document(node)
    # What a tag or a number gives that is not one: `!!int x`, a 31st of February, 10^5000.
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise RecipeError(f"{name} is not valid YAML: {error}") from error


def _too_long(name: str) -> RecipeError:
    return RecipeError(
        f"{name} has more than {MAX_BYTES:,} bytes; a recipe is a short file.",
        "Check that it is the file you meant.",
    )


def _count(
    node: yaml.Node, known: dict[int, tuple[int, int]], above: set[int]
) -> tuple[int, int]:
    """(values, levels) of a node with all aliases written out; each node is counted once."""
    if id(node) in above:
        raise _TooMuchError("an alias stands inside of what it stands for")
    if id(node) not in known:
        above.add(id(node))
        values, levels = 1, 1
        for child in _children(node):
            more, below = _count(child, known, above)
            values, levels = values + more, max(levels, below + 1)
        above.discard(id(node))
        if values > MAX_VALUES:
            raise _TooMuchError(
                f"it has more than {MAX_VALUES:,} values once its aliases are written out"
            )
        if levels > MAX_DEPTH:
            raise _TooMuchError(f"it is nested more than {MAX_DEPTH} levels deep")
        known[id(node)] = values, levels
    return known[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
