"""The model card: README.md of an exported model, with metadata for the Hugging Face Hub."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from jinja2 import Environment, PackageLoader, StrictUndefined

from fusetune.members.layers import LayerWeights, group_names
from fusetune.members.member import Members, architectures
from fusetune.members.points import OwnModel, Point
from fusetune.redaction import shown

AUTO_CLASSES = (
    ("ForSequenceClassification", "AutoModelForSequenceClassification"),
    ("ForMultipleChoice", "AutoModelForMultipleChoice"),
    ("ForQuestionAnswering", "AutoModelForQuestionAnswering"),
    ("ForTokenClassification", "AutoModelForTokenClassification"),
    ("ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
    ("ForMaskedLM", "AutoModelForMaskedLM"),
    ("ForCausalLM", "AutoModelForCausalLM"),
    ("LMHeadModel", "AutoModelForCausalLM"),
)


def model_card(
    pool: Members,
    point: Point,
    *,
    name: str,
    method: str | None = None,
    task: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    pipeline_tag: str | None = None,
    language: str | Sequence[str] | None = None,
    license: str | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    tags: Sequence[str] = (),
    adapter: bool = False,
) -> str:
    """Render the card.

    Args:
        pool: The members, for the table of weights.
        point: w, or whatever else a method chose.
        name: The model's name, its heading.
        method: How w was chosen.
        task: What the model does, a few words.
        base_model: Hub id of the model that was fine-tuned; a local folder is named in the
            text only, because the Hub could not resolve it.
        dataset: Hub id or name of the data set.
        pipeline_tag: The Hub's name of the task, such as "text-classification".
        language: ISO 639 code(s).
        license: The Hub's identifier of a licence.
        metrics: Split → metric → value, natural sign; values that are not finite are
            left out. With `dataset` and `pipeline_tag`, they become the card's model-index.
        tags: Added to "merge" and "fusetune".
        adapter: Whether the folder holds a LoRA adapter.
    """
    finite = [
        (split, metric, float(value))
        for split, values in (metrics or {}).items()
        for metric, value in values.items()
        if math.isfinite(value)
    ]
    columns = _weights(point)
    results = _eval_results(finite, dataset, pipeline_tag)
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        model_name=_plain(name) if results else None,
        base_model=base_model if base_model and _on_hub(base_model) else None,
        datasets=dataset if dataset and _on_hub(dataset) else None,
        pipeline_tag=pipeline_tag,
        language=[language] if isinstance(language, str) else list(language or ()) or None,
        license=license,
        tags=list(dict.fromkeys(("merge", "fusetune", *tags))),
        metrics=sorted({metric for _, metric, _ in finite}) or None,
        eval_results=results or None,
    )
    context: dict[str, Any] = {
        "metadata": yaml.safe_dump(data.to_dict(), sort_keys=False, allow_unicode=True),
        "name": name,
        "location": json.dumps(name, ensure_ascii=False),
        "method": method,
        "task": task,
        "base_model": Path(base_model).name if base_model else None,
        "auto_class": _auto_class(pool.config),
        "adapter": adapter,
        "base_location": json.dumps(base_model or "BASE MODEL", ensure_ascii=False),
        "metrics": [(split, metric, f"{value:.4f}") for split, metric, value in finite],
        "members": [
            {
                "name": member.name,
                "step": member.step,
                "weights": [f"{values[i]:.4f}" for values in columns.values()],
            }
            for i, member in enumerate(pool.members)
        ],
        "columns": list(columns),
        "own": isinstance(point, OwnModel),
    }
    return _environment().get_template("card.md.j2").render(context)


def _weights(point: Point) -> dict[str, tuple[float, ...]]:
    """Heading → the members' weights; one column for each group of layers with its own w."""
    if isinstance(point, OwnModel):
        return {}
    if isinstance(point, LayerWeights):
        rows = (w.values for w in point.groups)
        return dict(zip(group_names(point.parts), rows, strict=True))
    return {"weight": point.values}


@cache
def _environment() -> Environment:
    # Autoescaping is for HTML; Markdown has its own rules, in the two filters.
    environment = Environment(
        loader=PackageLoader("fusetune.members"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["line"] = _line
    environment.filters["cell"] = lambda text: _line(text).replace("|", "\\|")
    return environment


def _plain(text: str) -> str:
    """Text on one line without HTML, control characters and secrets."""
    return html.escape(shown(" ".join(str(text).split())), quote=False)


def _line(text: str) -> str:
    """Text on one line that starts no markup of its own."""
    flat = _plain(text)
    return re.sub(r"([\\`*\[\]])", r"\\\1", flat)


def _on_hub(name: str) -> bool:
    """Whether a name can be a Hub id: the right form, and no folder of this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def _eval_results(
    metrics: Sequence[tuple[str, str, float]], dataset: str | None, pipeline_tag: str | None
) -> list[EvalResult]:
    if not dataset or not pipeline_tag:
        return []
    slug = dataset if _on_hub(dataset) else re.sub(r"[^\w.-]+", "-", dataset).strip("-.")
    return [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=slug or "data",
            dataset_name=_plain(dataset),
            dataset_split=split,
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for split, metric, value in metrics
    ]


def _auto_class(config: Mapping[str, Any]) -> str:
    architecture = next(iter(architectures(config)), "")
    for ending, auto_class in AUTO_CLASSES:
        if architecture.endswith(ending):
            return auto_class
    return "AutoModel"
