"""The model of any method of a finished run, of a point of its front, or of other weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusetune.errors import RunError
from fusetune.members.average import Average, for_files
from fusetune.members.companions import has_tokenizer, tokenizer_home
from fusetune.members.disk import write_text
from fusetune.members.export import ExportForm, export, local_folder
from fusetune.members.member import read_json
from fusetune.members.mergekit import check_can_be_laid, to_yaml
from fusetune.members.points import Point
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.models.gguf import GGUF
from fusetune.pipeline import front
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.pipeline.saved import saved_results
from fusetune.pipeline.workbench import Workbench, open_members
from fusetune.recipe_file import load
from fusetune.run import RunFolder


def export_model(
    path: Path,
    out: Path | None,
    *,
    method: str | None = None,
    weights: str | None = None,
    pick: str | None = None,
    mergekit: Path | None = None,
    display: Display,
    form: str | None = None,
    allow_code: bool = False,
) -> None:
    """Write a model of a finished run, or the recipe by which mergekit makes it.

    At most one of `method`, `weights` and `pick` says which model; it is the chosen one
    without.

    Args:
        path: The run folder.
        out: Where the model goes; None writes none.
        method: A method of the run.
        weights: Comma-separated numbers, one per member; divided by their sum.
        pick: A file of `front/`, a recipe of mergekit, or bounds and a goal as
            "loss <= 0.5, max f1".
        mergekit: Where a recipe of mergekit goes.
        display: Where to say what was done.
        form: Of adapters: merged, adapter or adapter-svd:RANK; the recipe's by default.
        allow_code: Consent to code that the recipe names.

    Raises:
        RunError: If the run has not been fused, or has no such method, the weights are not
            one non-negative number per member, nothing keeps the bounds, or there is
            nothing to write.
    """
    folder = RunFolder(path)
    record = folder.recorded("fuse")
    if record is None:
        raise RunError(f"{path} has no fused models yet.", f"Run `fusetune run {path}` first.")
    if sum(given is not None for given in (method, weights, pick)) > 1:
        raise RunError("Give one of --method, --weights and --pick.")
    if out is None and mergekit is None:
        raise RunError("Nothing to write.", "Give --out FOLDER, or --mergekit FILE.")
    context = Context(
        load(folder.recipe_file, of_run=True), folder, display, allow_code=allow_code
    )
    bench = open_members(context)
    chosen, extra = _chosen(context, bench, method or str(record["chosen"]), weights, pick)
    if mergekit is not None:
        adapters = bench.pool.adapters
        if adapters is not None and adapters.base.layers:
            raise RunError(
                "mergekit would lay the adapters on the base's own weights, and this run's are "
                f"quantised ({adapters.base.quantisation}).",
                "Write the model itself, with --out.",
            )
        if bench.apart:
            raise RunError(
                "mergekit averages whole models, and fuse.adapters of this run is factors.",
                "Write the model itself, with --out.",
            )
        if adapters is not None:
            check_can_be_laid(adapters)
        mergekit.parent.mkdir(parents=True, exist_ok=True)
        write_text(mergekit, to_yaml(bench.pool, chosen, extra))
        display.say(f"Wrote {mergekit}: mergekit-yaml {mergekit} FOLDER makes the model.")
    if out is not None:
        # One pass from file to file: neither whole models nor the fused one have to fit in
        # memory.
        average = for_files(bench.pool, apart=bench.apart)
        wanted = ExportForm.parse(form or context.recipe.fuse.export)
        write_model(context, average, chosen, bench.pool, out, extra=extra, form=wanted)
        display.say(f"Wrote the model of {extra['method']} to {out}.")


def write_model(
    context: Context,
    average: Average,
    point: Point,
    pool: MemberPool,
    out: Path,
    *,
    extra: Mapping[str, Any],
    form: ExportForm,
    card: str | None = None,
) -> None:
    """Write a model with all that the checkpoints and the recipe's model bring beside weights.

    The tokenizer is the one of the evaluations. Its files are copied; it is saved anew only
    where it has none, as that of a GGUF file.
    """
    source = context.source
    folders = local_folder(source.path, context.recipe.model.revision)
    stored = tokenizer_home(pool.last) is not None or (
        GGUF not in source.options and any(map(has_tokenizer, folders))
    )
    fused = context.folder.fused / "config.json"
    export(
        average,
        point,
        pool,
        out,
        tokenizer=None if stored else context.tokenizer,
        config=read_json(fused) if fused.is_file() else None,
        beside=folders,
        card=card,
        extra=extra,
        form=form,
    )


def _chosen(
    context: Context, bench: Workbench, method: str, weights: str | None, pick: str | None
) -> tuple[Point, Mapping[str, Any]]:
    """What to write, and what fusion.json says of it: where it comes from, its values."""
    if weights is not None:
        own = _parse_weights(weights, len(bench.pool))
        return own, {"method": "weights of your own"}
    if pick is not None:
        objectives = context.task.objectives
        point, name, extra = front.pick(context.folder.front, pick, objectives, bench.pool)
        return point, {"method": name, **extra}
    results = saved_results(context.folder)
    if method not in results:
        raise RunError(
            f"{context.folder.path} has no method {method!r}; it has {', '.join(results)}."
        )
    result = results[method]
    return result.point, {"method": method, "validation": dict(result.values)}


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
