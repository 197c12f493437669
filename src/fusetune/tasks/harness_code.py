"""Whether a folder of tasks of lm-evaluation-harness can run code, told from its files alone.

The harness imports the Python that its YAML names (`!function`, `class`), fetches metrics that
it does not know as scripts, and reads pickles where a data set is said to be one. A folder is
plain if it has none of that: no Python, and only tags, keys and values known to be data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusetune.errors import RecipeError
from fusetune.recipe_yaml import read_text, read_yaml

KIND = "lm-eval"
ENDINGS = (".yaml", ".yml")

METRICS = frozenset(
    {
        "acc", "acc_all", "acc_bytes", "acc_mutual_info", "acc_norm", "bits_per_byte", "bleu",
        "brier_score", "bypass", "byte_perplexity", "chrf", "exact_match", "f1", "likelihood",
        "mcc", "perplexity", "ter", "word_perplexity",
    }
)  # fmt: skip
"""Metrics of the harness itself; it asks the Hub for a script of any other name."""

RUNNING = (
    "class",
    "custom_dataset",
    "include",
    "use_prompt",
    "hf_evaluate",
    "trust_remote_code",
)
"""Keys by which code, or a file elsewhere, comes in."""

PICKLED = ("pandas", "pickle", "webdataset", "cache")
"""Builders of data sets that read pickles, or files of any kind."""


def reason(folder: Path) -> str | None:
    """Why tasks in a folder can run code; None if they are plain data.

    Args:
        folder: With YAML files of tasks, which are looked for below it too.
    """
    for file in _files(folder):
        if file.suffix not in ENDINGS:
            return f"the harness tasks of {folder}, which have Python beside them ({file.name})"
        try:
            content = read_yaml(read_text(file), str(file))
        except RecipeError:  # a tag as !function, or no plain YAML at all
            return f"the harness tasks of {folder}, whose {file.name} is more than plain data"
        if why := next(_running(content), None):
            return f"the harness tasks of {folder}, whose {file.name} has {why}"
    return None


def digest(folder: Path) -> str:
    """Sha256 of all YAML and Python files of a folder, with their names."""
    found = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape"))
    for file in _files(folder):
        found.update(f"\n{file}\n".encode("utf-8", "surrogateescape"))
        found.update(file.read_bytes())
    return found.hexdigest()


def _files(folder: Path) -> list[Path]:
    found = []
    for place, _, names in os.walk(folder, followlinks=True):
        found += [Path(place, n) for n in names if n.endswith((*ENDINGS, ".py", ".so", ".pyc"))]
    return sorted(path for path in found if path.is_file())


def _running(value: Any) -> Iterator[str]:
    """What in a YAML tree makes the harness run or fetch code."""
    if isinstance(value, list):
        for item in value:
            yield from _running(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in RUNNING and item:
                yield f"the key {key}"
            elif key == "metric" and item not in METRICS:
                yield f"the metric {item}"
            elif key == "dataset_path" and (item in PICKLED or _scripted(str(item))):
                yield f"the data set {item}"
            yield from _running(item)


def _scripted(data: str) -> bool:
    """Whether a data set is a folder or file with a script of its own."""
    return data.endswith(".py") or any(Path(data).glob("*.py"))
