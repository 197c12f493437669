"""Stage 2: one full training with the λ found; its checkpoints are the members."""

from __future__ import annotations

import shutil
import time
from typing import Any

from transformers import TrainerCallback

from fusetune.errors import StageError
from fusetune.pipeline.context import Context
from fusetune.training.collect import MemberCollector
from fusetune.training.trajectory import train as train_trajectory
from fusetune.training.watch import DivergedError, ProgressReporter


def train(context: Context) -> dict[str, Any]:
    """Train in full and collect the members; returns the stage's record.

    Raises:
        StageError: If the training diverges, or the search is not complete.
    """
    folder, recipe = context.folder, context.recipe
    found = folder.done("search")
    if found is None:
        raise StageError(
            f"{folder.path} has no finished search.",
            "Run `fusetune search` first, or everything with `fusetune run`.",
        )
    started = time.perf_counter()
    collector = MemberCollector(
        folder.members, recipe.train.members, recipe.train.collect_from, context.tokenizer
    )
    with context.display.bar("train", 1) as bar:

        def show(step: int, total: int) -> None:
            kept = sum(s <= step for s in collector.steps)
            bar.update(step, total, f"{kept} of {recipe.train.members} members")

        callbacks: list[TrainerCallback] = [collector, ProgressReporter(show)]
        try:
            steps = train_trajectory(
                context.model_maker(),
                context.train_data,
                context.collate,
                folder.work / "train",
                context.training_arguments(found["params"]),
                epochs=recipe.train.epochs,
                seed=recipe.seed,
                device=context.device.type,
                precision=context.precision,
                callbacks=callbacks,
            )
        except DivergedError as error:
            raise StageError(
                f"The full training diverged: {error}.",
                "Lower search.space.learning_rate.high, or train.arguments.learning_rate.",
            ) from error
    earlier = (folder.done("train") or {}).get("seconds", 0.0)
    record = {
        "params": found["params"],
        "steps": steps,
        "members": [f"step-{step:06d}" for step in collector.steps],
        "seconds": time.perf_counter() - started + earlier,
    }
    folder.finish("train", record)
    shutil.rmtree(folder.work, ignore_errors=True)
    return record
