"""The model of any method of a finished run, or of weights of one's own."""

from __future__ import annotations

from pathlib import Path

from fusetune.errors import RunError
from fusetune.members.average import for_files
from fusetune.members.export import ExportForm, export
from fusetune.members.points import Point
from fusetune.members.weights import FusionWeights
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.pipeline.fuse import saved_results
from fusetune.pipeline.workbench import open_members
from fusetune.recipe_file import load
from fusetune.run import RunFolder


def export_model(
    path: Path,
    out: Path,
    *,
    method: str | None,
    weights: str | None,
    display: Display,
    form: str | None = None,
) -> None:
    """Write the model of one method, or of given weights, of a finished run.

    Args:
        path: The run folder.
        out: Where the model goes.
        method: A method of the run; the chosen one's model if None.
        weights: Comma-separated numbers instead, one per member; divided by their sum.
        display: Where to say what was done.
        form: Of adapters: merged, adapter or adapter-svd:RANK; the recipe's by default.

    Raises:
        RunError: If the run has not been fused, or has no such method, or the weights are
            not one non-negative number per member.
    """
    folder = RunFolder(path)
    record = folder.done("fuse")
    if record is None:
        raise RunError(f"{path} has no fused models yet.", f"Run `fusetune run {path}` first.")
    context = Context(load(folder.recipe_file), folder, display)
    bench = open_members(context)
    results = saved_results(folder)
    name = method or str(record["chosen"])
    chosen: Point
    if weights is not None:
        chosen, name = _parse_weights(weights, len(bench.pool)), "weights of your own"
    elif name in results:
        chosen = results[name].point
    else:
        raise RunError(f"{path} has no method {name!r}; it has {', '.join(results)}.")
    # One pass from file to file: neither whole models nor the fused one have to fit in memory.
    average = for_files(bench.pool, apart=bench.apart)
    wanted = ExportForm.parse(form or context.recipe.fuse.export)
    export(average, chosen, bench.pool, out, extra={"method": name}, form=wanted)
    display.say(f"Wrote the model of {name} to {out}.")


def _parse_weights(text: str, k: int) -> FusionWeights:
    try:
        numbers = [float(part) for part in text.split(",")]
        if len(numbers) != k or min(numbers) < 0 or not 0 < sum(numbers) < float("inf"):
            raise ValueError
    except ValueError:
        raise RunError(
            f"--weights must be {k} non-negative numbers with commas between them, "
            f"not all zero; got {text!r}."
        ) from None
    return FusionWeights.normalised(numbers)
