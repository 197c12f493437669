"""YAML of recipes: a safe loader with limits, so that a file can ask for no more than it is.

Only plain data can come out of it: mappings, lists, texts, numbers, dates. Anchors are
allowed, but a few of them can stand for billions of values, so that what counts is the size
of the tree once every alias is written out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from fusetune.errors import RecipeError
from fusetune.redaction import printable

MAX_BYTES = 200_000
MAX_VALUES = 10_000
MAX_DEPTH = 32
MAX_INTEGER = 2**63


QUOTE = "Put a text with {{ }}, a colon or the sign # in quotes: '\"Q: {{ question }}\"'."

_STRING = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
_FLOAT = re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$")


class _Loader(yaml.SafeLoader):
    """Plain scalars mean what YAML 1.2 says, where that can be misread by nobody.

    `true`, `false` and `null` are what they are in JSON, whole numbers are decimal and begin
    with no 0, or are hexadecimal; `1e-5` is a number. Everything else is a text: `yes`, `no`,
    `on`, `off`, `010`, `1_000`, `1:30` and `2026-12-01`, which YAML 1.1 turns into something
    else.
    """

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
        text = self.construct_scalar(node)
        value = int(text, 16 if "x" in text else 10)
        if abs(value) > MAX_INTEGER:
            line = node.start_mark.line + 1
            raise _TooMuchError(f"the whole number in line {line} is beyond ±2^63")
        return value


_Loader.yaml_implicit_resolvers = {}  # of its own, in the place of those of YAML 1.1


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or `_Loader` would read as something else."""


class _TooMuchError(yaml.YAMLError):
    """A limit is exceeded."""


class _UnclearError(yaml.YAMLError):
    """A part of the text would be lost, or cannot be what was meant."""


class _TwiceError(_UnclearError):
    """A mapping has a key twice."""


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    (_NULL, r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"^[-+]?(0|[1-9]\d*|0x[\da-fA-F]+)$", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", "-+."),
    (_MERGE, r"^<<$", "<"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


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


def read_yaml(text: str, name: str, *, texts: Iterable[str] = (), whole: bool = False) -> Any:
    """What a YAML text says, as plain data.

    Args:
        text: Of at most 200,000 bytes, with 10,000 values at most 32 levels deep, aliases
            written out.
        name: How messages call it.
        texts: Dotted paths of values that are texts: numbers and booleans on and below them
            stay as they are written, `1.0` and `True`. At a path that ends in `!`, so does
            null. An empty path is the whole value.
        whole: Whether everything that is written has to be part of the value: a comment is
            an error, as on a command line, where nobody means one.

    Raises:
        RecipeError: If it is no YAML, exceeds a limit, has a key twice, or has a value that
            is none.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _too_long(name)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if whole and text[node.end_mark.index if node is not None else 0 :].strip():
            raise _UnclearError("what follows the sign # would be a comment, and lost")
        if node is None:
            return None
        _count(node, {}, set())
        for path in texts:
            keys = [key for key in path.removesuffix("!").split(".") if key]
            _keep_texts(node, keys, nulls=path.endswith("!"))
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
        unquoted = whole or "{{" in text
        raise RecipeError(
            f"{name} is not valid YAML: {error}",
            QUOTE if unquoted and not isinstance(error, _TwiceError) else "",
        ) from error


def write_yaml(tree: Any) -> str:
    """Plain data as YAML that `read_yaml` reads back as the same, keys in their order."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=96)
    if text != printable(text):  # marks that turn the reading direction, as escapes
        text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=96)
    return text


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
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
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


def _check_keys(node: yaml.MappingNode) -> None:
    """Keys are names: texts whatever they look like, and each of them stands there once."""
    names = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise _UnclearError(f"a key in line {line} is no name")
        if key.tag == _MERGE:
            continue
        if key.tag == _resolve(key.value):  # an explicit tag has to fit
            key.tag = _STRING
        if key.value in names:
            raise _TwiceError(f"the key {key.value!r} stands twice, again in line {line}")
        names.add(key.value)


def _resolve(text: str) -> Any:
    """The tag that a plain scalar has by what it looks like."""
    return _Loader("").resolve(yaml.ScalarNode, text, (True, False))


def _keep_texts(node: yaml.Node, path: list[str], *, nulls: bool) -> None:
    """Marks the plain scalars below a path as texts."""
    if path:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == path[0]:
                    _keep_texts(value, path[1:], nulls=nulls)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _keep_texts(value, path, nulls=nulls)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _keep_texts(value, path, nulls=nulls)
    elif node.tag != _NULL or nulls:
        node.tag = _STRING
