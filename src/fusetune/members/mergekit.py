"""Weighted averages as merge recipes of mergekit [Goddard2024], written and read.

Of mergekit's methods `linear` alone is an average Σ w_i θ_i of the models; with `normalize`,
its default, the weights are divided by their sum. Keys that it does not know it ignores, so
that a file may say more under `fusetune`.

.. [Goddard2024] C. Goddard et al. Arcee's MergeKit: A Toolkit for Merging Large Language
   Models. EMNLP 2024, Industry Track.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fusetune.errors import RecipeError, StageError
from fusetune.members.adapter import AdapterMember
from fusetune.members.adapter_source import AdapterSource
from fusetune.members.layers import LayerWeights
from fusetune.members.member import Member, Members
from fusetune.members.points import OwnModel, Point
from fusetune.members.weights import TOLERANCE, FusionWeights
from fusetune.recipe_yaml import read_text, read_yaml

METHOD = "linear"

HUGE = 1e300
"""Weights above it are divided by the largest first: their sum would be beyond every number."""

EXTRA = "fusetune"
"""Key of what a file says beyond mergekit."""

IN_WORDS = "a weighted average: merge_method: linear, models: [{model, parameters: {weight}}]"


def to_yaml(pool: Members, point: Point, extra: Mapping[str, Any] | None = None) -> str:
    """The recipe by which `mergekit-yaml` makes the model of a point.

    Members without weight are left out. Paths are absolute; an adapter stands with its base.

    Args:
        pool: The members.
        point: w, or coefficients of any sign.
        extra: Plain data for the key `fusetune`.

    Raises:
        StageError: If the model is no combination of the members, or an adapter does not
            say what its base is.
    """
    if isinstance(point, OwnModel | LayerWeights):
        raise StageError(
            "The model is no weighted average of the members, and mergekit's linear makes "
            "nothing else.",
            "Write the model itself, with --out.",
        )
    used = [(m, w) for m, w in zip(pool.members, point.values, strict=True) if w != 0.0]
    recipe: dict[str, Any] = {
        "merge_method": METHOD,
        "models": [{"model": _reference(m), "parameters": {"weight": w}} for m, w in used],
        "parameters": {"normalize": isinstance(point, FusionWeights)},
    }
    dtypes = {t.dtype for t in pool.tensors.values() if t.dtype.is_floating_point}
    if len(dtypes) == 1:
        recipe["dtype"] = str(dtypes.pop()).removeprefix("torch.")
    last = used[-1][0]
    if (last.path / "tokenizer_config.json").is_file() and not isinstance(last, AdapterMember):
        recipe["tokenizer_source"] = _reference(last)
    if extra:
        recipe[EXTRA] = dict(extra)
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def check_can_be_laid(adapters: AdapterSource) -> None:
    """Refuse adapters that are more than mergekit reads: factors of layers, on their base.

    Raises:
        StageError: If they are.
    """
    parameters = any(a.parameter for m in adapters.members for a in m.modules.values())
    rows = any(member.rows for member in adapters.members)
    whole = any(member.files[0].stem != "adapter_model" for member in adapters.members)
    if parameters or rows or whole or adapters.base.laid:
        raise StageError(
            "mergekit lays adapters on linear layers and embeddings of a base alone, and these "
            "have experts, single tokens or weights of the base of their own.",
            "Write the model itself, with --out.",
        )


def _reference(member: Member) -> str | dict[str, Any]:
    path = str(member.path.resolve())
    if not isinstance(member, AdapterMember):
        # In a plain text, + begins an adapter and @ a revision.
        return {"model": {"path": path}} if set("+@") & set(path) else path
    if member.base_name is None:
        raise StageError(
            f"{member.path} does not say which model it was trained on.",
            "Put base_model_name_or_path into its adapter_config.json.",
        )
    base = Path(member.base_name)
    name = str(base.resolve()) if base.is_dir() else member.base_name
    return {"model": {"path": name}, "lora": {"path": path}}


@dataclass(frozen=True, slots=True)
class LinearMerge:
    """A linear merge that was read from a file.

    Attributes:
        file: Where it stands.
        models: Path or name of each model, an adapter's own where there is one.
        weights: One per model; they sum to 1.
        extra: What stood under the key `fusetune`.
    """

    file: Path
    models: tuple[str, ...]
    weights: tuple[float, ...]
    extra: Mapping[str, Any]

    @classmethod
    def read(cls, file: str | Path) -> LinearMerge:
        """Read a recipe; weights are divided by their sum, as mergekit does.

        Raises:
            RecipeError: If it is no linear merge with one weight per model, or a weight is
                negative.
        """
        file = Path(file)
        content = _content(file)
        method = content.get("merge_method")
        if method != METHOD:
            raise RecipeError(
                f"{file} has merge_method: {method}; weights of fusion can only come from "
                f"{METHOD}.",
                f"Give {IN_WORDS}.",
            )
        entries = content.get("models")
        if not isinstance(entries, list) or not entries:
            raise RecipeError(
                f"{file} has no list of models (slices and modules are not averages of whole "
                "models).",
                f"Give {IN_WORDS}.",
            )
        common = _mapping(content.get("parameters"))
        names = tuple(_name(file, entry) for entry in entries)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecipeError(f"{file} names {', '.join(twice)} more than once.")
        raw = tuple(
            _weight(file, name, {**common, **_mapping(entry.get("parameters"))})
            for name, entry in zip(names, entries, strict=True)
        )
        normalise = common.get("normalize", True)
        if not isinstance(normalise, bool):
            raise RecipeError(f"{file}: normalize is true or false; got {normalise!r}.")
        weights = _summing_to_1(file, raw, normalise)
        return cls(file, names, weights, _mapping(content.get(EXTRA)))

    def weights_of(self, members: Sequence[Member]) -> FusionWeights:
        """The weights in the order of the members, 0 for those that the file leaves out.

        A model is a member by its path, else by the name of its folder.

        Raises:
            RecipeError: If a model is none of the members, or could be several.
        """
        values = [0.0] * len(members)
        for name, weight in zip(self.models, self.weights, strict=True):
            values[self._find(name, members)] += weight
        return FusionWeights(tuple(values))

    def _find(self, name: str, members: Sequence[Member]) -> int:
        places = {Path(name).resolve(), (self.file.parent / name).resolve()}
        found = [i for i, m in enumerate(members) if m.path.resolve() in places]
        found = found or [i for i, m in enumerate(members) if m.name == Path(name).name]
        if len(found) == 1:
            return found[0]
        raise RecipeError(
            f"{self.file} has the model {name}, which is "
            f"{'none' if not found else 'the name of several'} of the members: "
            f"{', '.join(m.name for m in members)}.",
            "Name the members by their folders.",
        )


def _content(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(read_text(file), str(file))
    except OSError as error:
        raise RecipeError(f"{file} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{file} is no recipe of mergekit.", f"Give {IN_WORDS}.")
    return content


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _name(file: Path, entry: object) -> str:
    """What a model is called: "base", "base+adapter", "name@revision", or as a mapping."""
    model = _mapping(entry).get("model")
    if isinstance(model, dict):
        model = model.get("lora") or model.get("model") or model.get("path")
    if isinstance(model, dict):
        model = model.get("path")
        if isinstance(model, str):
            return model
    if not isinstance(model, str) or not model:
        raise RecipeError(f"{file} has an entry of models without a model: {entry!r}.")
    return model.rpartition("+")[2].partition("@")[0]


def _weight(file: Path, name: str, parameters: Mapping[str, Any]) -> float:
    value = parameters.get("weight")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or not number or not math.isfinite(value):
        raise RecipeError(
            f"{file}: the weight of {name} must be one number for the whole model; got "
            f"{value!r}.",
            "Weights by layer or by tensor are no point of the search.",
        )
    if value < 0:
        raise RecipeError(f"{file}: weights must not be negative; {name} has {value}.")
    return float(value)


def _summing_to_1(file: Path, raw: tuple[float, ...], normalise: bool) -> tuple[float, ...]:
    if max(raw) > HUGE:
        raw = tuple(weight / max(raw) for weight in raw)
    total = math.fsum(raw)
    if math.isclose(total, 1.0, abs_tol=TOLERANCE):
        return raw  # to the last bit
    if not normalise or total == 0.0:
        raise RecipeError(
            f"{file}: the weights sum to {total:g}, and "
            + ("none is above 0." if total == 0.0 else "normalize is false."),
            "Let them sum to 1, or leave normalize out.",
        )
    return FusionWeights.normalised(raw).values
