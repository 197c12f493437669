"""What `transfer` found about a light variant, for the searches that use it.

`transfer` writes transfer.json; a search in the same folder that is about the same task, model
and variant reads it, and warns if the variant misleads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusetune.recipe import Recipe

FILE = "transfer.json"


def subject(recipe: Recipe) -> dict[str, Any]:
    """What a comparison of light and full training is about; other keys do not matter."""
    variant = recipe.search.variant
    return {
        "task": recipe.task.model_dump(mode="json", exclude={"name"}),
        "model": recipe.model.model_dump(mode="json", include={"name", "revision"}),
        "variant": variant if isinstance(variant, str) else variant.model_dump(mode="json"),
    }


def warnings(folder: Path, recipe: Recipe) -> list[str]:
    """What a search with this recipe has to be warned of; a damaged file counts as none.

    Args:
        folder: The run folder.
        recipe: Of the search.
    """
    if not recipe.search.trials or isinstance(recipe.search.variant, str):
        return []
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(found, Mapping) or found.get("subject") != subject(recipe):
        return []
    if not found.get("misleads"):
        return []
    return [
        f"The search trains a light variant that misleads. {found.get('sentence', '')} "
        "Freeze fewer layers, or set search.variant=full."
    ]
