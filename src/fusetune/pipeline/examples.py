"""A few texts of the fused model beside those of the best checkpoint, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusetune.evaluation.evaluator import Evaluator
from fusetune.methods.method import FusionResult
from fusetune.tasks.task import Split

SHOWN = 5
MOST_PROMPT = 800  # characters; of longer ones the end is shown, where the question stands


def examples(
    split: Split, evaluator: Evaluator, results: Mapping[str, FusionResult], chosen: str
) -> list[dict[str, Any]]:
    """Prompt, references and each model's text, for results.json; none without texts.

    The first examples in which the models differ, then the first of the others. Nothing is
    evaluated for them: texts are kept with the evaluations.

    Args:
        split: The test split.
        evaluator: Of that split; it has evaluated the models.
        results: What each method chose.
        chosen: The method whose model is fused/.
    """
    names = list(dict.fromkeys([chosen, *(n for n in ("finetune",) if n in results)]))
    texts: dict[str, tuple[str, ...]] = {}
    for name in names:
        outputs = evaluator(results[name].point).outputs
        if outputs is None or outputs.texts is None:
            return []
        texts[name] = outputs.texts
    different = {i for i in range(len(split)) if len({t[i] for t in texts.values()}) > 1}
    rows = sorted(range(len(split)), key=lambda i: (i not in different, i))[:SHOWN]
    return [
        {
            "prompt": _shortened(split.texts[i][0]),
            "references": list(split.labels[i]),
            "texts": {name: said[i] for name, said in texts.items()},
        }
        for i in rows
    ]


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= MOST_PROMPT else "… " + prompt[-MOST_PROMPT:]
