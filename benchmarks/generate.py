"""Evaluating a language model by what it writes, against the usual way.

    python -m benchmarks.generate --json

SmolLM2-135M repeats made-up sentences of 10 to 50 tokens: prompts of 50 to 80 tokens in its
chat template, at most 64 new ones. Without its package, random weights of its shapes write on
and on. One evaluation is the loss of a reference and a text written greedily, for every row.

The usual way is that of `Seq2SeqTrainer` with `predict_with_generate`: rows in the order of
the data, batches of 8, `model.generate`, then a forward pass for the loss, padded to the
longest of a batch. It is slow, so it is timed on the first `--usual-rows` rows and counted as
if all took as long. Both ways alternate in one process.

`speedup` compares wall time, `speedup_cpu` processor time. `--padded` adds `padded_*`, against
the usual way with everything padded to the limit of 192 tokens, as the examples do on request
(`pad_to_max_length`). `same_texts` is the share of texts that come out alike,
`loss_difference` the largest between losses of one row.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.adapters import base
from benchmarks.evaluate import side_by_side
from fusetune.errors import ModelError
from fusetune.evaluation.scorer import Scorer
from fusetune.models.device import DTYPES, choose_device, choose_precision
from fusetune.models.load import resolve
from fusetune.models.scratch import train_tokenizer
from fusetune.tasks import teacher_forcing
from fusetune.tasks.answers import AnswerCollator
from fusetune.tasks.decoding import generate
from fusetune.tasks.generation import Generation
from fusetune.tasks.task import Batch

USUAL_BATCH, LIMIT, NEW = 8, 192, 64
NAMES = ("Aromi", "Blue Spice", "The Cricketers", "Fitzbillies", "The Golden Palace", "Zizzi")
SLOTS = {
    "eatType": ("pub", "restaurant", "coffee shop"),
    "food": ("French", "Japanese", "Indian", "Italian", "Fast food"),
    "priceRange": ("cheap", "moderate", "high", "more than £30", "less than £20"),
    "customer rating": ("low", "average", "high", "1 out of 5", "5 out of 5"),
    "area": ("riverside", "city centre"),
    "familyFriendly": ("yes", "no"),
    "near": ("Café Rouge", "Burger King", "The Portland Arms", "Raja Indian Cuisine"),
}


def write_rows(folder: Path, rows: int) -> None:
    """Sentences of one to seven facts, after the manner of E2E."""
    draw = random.Random(0)
    for split in ("train", "validation", "test"):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(rows):
                slots = draw.sample(sorted(SLOTS), draw.randint(1, len(SLOTS)))
                facts = ", ".join(f"{slot} {draw.choice(SLOTS[slot])}" for slot in slots)
                text = f"{draw.choice(NAMES)} is a place with {facts}."
                file.write(json.dumps({"text": text}) + "\n")


def its_tokenizer(data: Path) -> PreTrainedTokenizerBase:
    """The packaged model's; one that is learned from the rows where it is not installed."""
    try:
        return resolve("smollm2").tokenizer()
    except ModelError:
        rows = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
        return train_tokenizer(rows, 2000)


def usual(
    task: Generation,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    batches: Sequence[Batch],
    dtype: torch.dtype,
) -> Callable[[], tuple[list[str], list[float]]]:
    """The usual way over some batches: texts, and summed losses."""

    def run() -> tuple[list[str], list[float]]:
        texts: list[str] = []
        losses: list[float] = []
        kind = batches[0]["labels"].device.type
        for batch in batches:
            given = (batch["prompt_ids"], batch["prompt_mask"])
            lower = torch.autocast(kind, dtype, enabled=dtype is not torch.float32)
            with torch.inference_mode(), lower:
                texts += generate(model, *given, tokenizer, task.decoding)[0]
                found = -teacher_forcing.log_probabilities(model, batch)
            counts = teacher_forcing.counts(batch["labels"]).tolist()
            losses += [float(part.sum()) for part in found.split(counts)]
        return texts, losses

    return run


def padded(batch: Batch, pad: int) -> Batch:
    """A batch whose prompts and whole texts are filled up to the limit, on their sides."""
    made = dict(batch)
    fill = {"input_ids": pad, "attention_mask": 0, "labels": teacher_forcing.IGNORED}
    fill |= {"prompt_ids": pad, "prompt_mask": 0}
    for name, value in fill.items():
        prompt = name.startswith("prompt")
        wide = LIMIT - (NEW if prompt else 0) - batch[name].shape[1]
        sides = (wide, 0) if prompt else (0, wide)
        made[name] = nn.functional.pad(batch[name], sides, value=value)
    return made


def measure(data: Path, options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Seconds of the ways, and their ratios."""
    tokenizer = its_tokenizer(data)
    task = Generation(
        "sentences",
        str(data),
        prompt="Repeat this sentence: {{ text }}",
        reference="text",
        metrics=["exact_match"],
        chat=bool(tokenizer.chat_template),
        generation={"max_new_tokens": NEW},
    )
    model = base().eval().to(device)
    task.configure(model.config)
    encoded = task.encode("validation", tokenizer, LIMIT)
    dtype = DTYPES[choose_precision(options.precision, device)]
    scorer = Scorer(task, encoded, task.collate(tokenizer), device, dtype)
    rows = range(min(options.usual_rows, len(encoded)))
    collate = AnswerCollator(tokenizer)
    batches = [
        {name: value.to(device) for name, value in collate(list(part)).items()}
        for part in (
            [encoded[i] for i in rows[start : start + USUAL_BATCH]]
            for start in range(0, len(rows), USUAL_BATCH)
        )
    ]
    run = usual(task, model, tokenizer, batches, dtype)
    found: list[tuple[list[str], list[float]]] = []
    ours: list[tuple[list[str], np.ndarray]] = []

    def evaluate() -> None:
        outputs = scorer(model).outputs
        assert outputs is not None
        ours.append((list(outputs.texts or ()), outputs.loss))

    ways: dict[str, Callable[[], object]] = {
        "ours": evaluate,
        "usual": lambda: found.append(run()),
    }
    if options.padded:
        wide = [padded(batch, tokenizer.pad_token_id or 0) for batch in batches]
        ways["padded"] = usual(task, model, tokenizer, wide, dtype)
    took = side_by_side(ways, device, options.repeats)
    (texts, losses), (said, loss) = found[0], ours[0]
    result = {
        "rows": len(encoded),
        "seconds": took["ours"][0],
        "seconds_cpu": took["ours"][1],
        "rows_per_second": len(encoded) / took["ours"][0],
        "same_texts": sum(a == b for a, b in zip(said, texts, strict=False)) / len(rows),
        "loss_difference": float(np.abs(loss[: len(rows)] - losses).max()),
        "new_tokens": float(np.mean([len(ids) for ids in tokenizer(said)["input_ids"]])),
    }
    scale = len(encoded) / len(rows)
    for way, key in {"usual": "", "padded": "padded_"}.items():
        if way in took:
            result[f"{key}speedup"] = took[way][0] * scale / took["ours"][0]
            result[f"{key}speedup_cpu"] = took[way][1] * scale / took["ours"][1]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--usual-rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--padded", action="store_true", help="also padded to the limit")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        write_rows(Path(temporary), options.rows)
        found = measure(Path(temporary), options, choose_device(options.device))
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), **found}))
    else:
        for name, value in found.items():
            print(f"{name:<20}{value:>12.4g}")


if __name__ == "__main__":
    main()
