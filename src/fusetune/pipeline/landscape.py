"""Loss and metrics over the plane through three members of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from fusetune.errors import MemberError, RunError, closest
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.disk import full_disk_is_an_error, write_json
from fusetune.members.plane import Place, Plane
from fusetune.members.points import Combination, Point
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display, log_to
from fusetune.pipeline.environment import package_version, require_same_data
from fusetune.pipeline.saved import saved_results
from fusetune.pipeline.workbench import open_members
from fusetune.recipe_file import load
from fusetune.report.landscape import Kind, Landscape, Mark, page, to_json
from fusetune.report.page import write
from fusetune.report.wording import duration
from fusetune.run import RunFolder
from fusetune.tasks.task import SplitName

GRID = 21
"""Points along each axis, as in Garipov et al. (2018)."""

MARGIN = 0.2
"""How far the grid reaches beyond what it has to show, as a share of its width."""

Marked = tuple[str, Kind, Point, Place]


def landscape(
    path: str | Path,
    *,
    members: Sequence[str] = (),
    grid: int = GRID,
    split: str = "validation",
    out: str | Path | None = None,
    display: Display | None = None,
    allow_code: bool = False,
) -> Path:
    """Evaluate a grid of the plane through three members; write a page and its data.

    Evaluations are kept with those of the run: one that was interrupted, or another figure
    of the same plane, goes on with what is there.

    Args:
        path: A run folder whose members have been fused.
        members: Names (or training steps) of three members; first, middle and last if empty.
        grid: Points along each axis.
        split: "train", "validation" or "test".
        out: The page; the data go beside it with the ending .json. `landscape.html` in the
            run folder if None (`landscape-SPLIT.html` for another split than validation).
        display: Where progress is shown; quiet if None.
        allow_code: Consent to code that the recipe names.

    Returns:
        The page.

    Raises:
        RunError: If the run has not been fused, or there is no such split or member.
        MemberError: If there are not three different members, or they lie on one line.
        ValueError: If `grid` is less than 2.
    """
    folder, display = RunFolder(path), display or Display(quiet=True)
    if grid < 2:
        raise ValueError(f"A grid needs at least 2 points along each axis; got {grid}.")
    if folder.recorded("fuse") is None:
        raise RunError(f"{path} has not been fused yet.", f"Run `fusetune run {path}` first.")
    chosen_split = _split(split)
    target = _target(folder, out, chosen_split)
    with folder.claim(), log_to(folder.log, verbose=display.verbose):
        context = Context(
            load(folder.recipe_file, of_run=True), folder, display, allow_code=allow_code
        )
        try:
            with full_disk_is_an_error(folder.path):
                require_same_data(context)
                found = _measure(context, members, grid, chosen_split)
                write_json(target.with_suffix(".json"), to_json(found))
                write(page(found), target)
        finally:
            context.close()
    display.say(f"Landscape: {target} and {target.with_suffix('.json').name}")
    return target


def _measure(
    context: Context, members: Sequence[str], grid: int, split: SplitName
) -> Landscape:
    bench = open_members(context)
    corners = _corners(bench.pool, members)
    plane = Plane.through(bench.pool, corners)
    marked = _marked(context, bench.pool, plane)
    evaluator = bench.evaluator(split)
    x, y = _axes([place for *_, place in marked], grid)
    points = [plane.point(a, b) for b in y for a in x]
    shadows: list[Point] = [
        point if kind == "member" else plane.point(place.x, place.y)
        for _, kind, point, place in marked
    ]
    _evaluate(context, evaluator, [*(p for _, _, p, _ in marked), *shadows, *points])
    names = [o.name for o in context.task.objectives]
    return Landscape(
        title=f"{context.task.name}: {context.folder.path.resolve().name}",
        split=split,
        primary=evaluator.primary.name,
        objectives=tuple(context.task.objectives),
        x=tuple(x),
        y=tuple(y),
        values={
            n: [
                [evaluator(p).values[n] for p in points[i * grid : (i + 1) * grid]]
                for i in range(grid)
            ]
            for n in names
        },
        marks=tuple(
            Mark(
                name=name,
                kind=kind,
                x=place.x,
                y=place.y,
                distance=place.distance,
                values=dict(evaluator(point).values),
                projected=dict(evaluator(shadow).values),
            )
            for (name, kind, point, place), shadow in zip(marked, shadows, strict=True)
        ),
        version=package_version("fusetune"),
    )


def _corners(pool: MemberPool, wanted: Sequence[str]) -> tuple[int, int, int]:
    """Indices of three different members.

    Raises:
        MemberError: If there are not three, or a name is unknown.
    """
    if not wanted:
        found = pool.trained
        if len(found) < 3:
            raise MemberError(f"A plane needs three members; this run has {len(found)}.")
        return found[0], found[len(found) // 2], found[-1]
    known = {**{str(m.step): i for i, m in enumerate(pool.members) if m.step is not None}}
    known |= {name: i for i, name in enumerate(pool.names)}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise MemberError(
            f"There is no member {unknown[0]!r}{closest(unknown[0], pool.names)}; "
            f"known: {', '.join(pool.names)}."
        )
    named = [known[name] for name in wanted]
    if len(named) != 3 or len(set(named)) != 3:
        raise MemberError(
            f"A plane needs three different members; got {', '.join(wanted)}.",
            hint=f"This run has {', '.join(pool.names)}.",
        )
    return named[0], named[1], named[2]


def _marked(context: Context, pool: MemberPool, plane: Plane) -> list[Marked]:
    """The three members, the average of all members, and the chosen model."""
    k = len(pool)
    record = context.folder.recorded("fuse") or {}
    chosen = str(record["chosen"])
    points: list[tuple[str, Kind, Point]] = [
        (pool.names[i], "member", FusionWeights.one_hot(i, k)) for i in plane.corners
    ]
    points.append(("swa", "swa", FusionWeights.uniform(k, pool.trained)))
    result = saved_results(context.folder)[chosen]
    points.append((f"{chosen}, chosen", "chosen", result.point))
    marked: list[Marked] = []
    for name, kind, point in points:
        try:
            if not isinstance(point, FusionWeights | Combination):
                raise ValueError("It is no combination of the members.")
            marked.append((name, kind, point, plane.place(point.values)))
        except ValueError as error:
            context.display.warn(f"{name} has no place in the plane and is left out: {error}")
    return marked


def _axes(places: Sequence[Place], grid: int) -> tuple[list[float], list[float]]:
    """Evenly spaced coordinates around all places, with the same margin on every side."""
    corner = np.array([[place.x, place.y] for place in places])
    low, high = corner.min(axis=0), corner.max(axis=0)
    low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
    x, y = (np.linspace(low[i], high[i], grid) for i in (0, 1))
    return x.tolist(), y.tolist()


def _evaluate(context: Context, evaluator: Evaluator, points: Sequence[Point]) -> None:
    """Evaluate what is not known yet; says how many that are before it begins."""
    points = list(dict.fromkeys(points))
    known = [e for p in points if (e := evaluator.store.get(p)) is not None]
    left = len(points) - len(known)
    text = f"landscape: {len(points)} evaluations, {len(known)} of them known already"
    if known and left:
        seconds = float(np.median([e.seconds for e in known]))
        text += f"; about {duration(seconds * left)}"
    context.display.say(text)
    if not left:
        return
    with context.display.bar("plane", len(points)) as bar:
        step = evaluator.per_pass
        for start in range(0, len(points), step):
            some = points[start : start + step]
            evaluator.prefetch(some)
            for point in some:
                evaluator(point)
            bar.update(start + len(some))


def _split(name: str) -> SplitName:
    for known in get_args(SplitName):
        if name == known:
            split: SplitName = known
            return split
    raise RunError(f"There is no split {name!r} (known: {', '.join(get_args(SplitName))}).")


def _target(folder: RunFolder, out: str | Path | None, split: SplitName) -> Path:
    ending = "" if split == "validation" else f"-{split}"
    target = folder.path / f"landscape{ending}.html" if out is None else Path(out)
    if target.suffix != ".html":
        target = target.with_name(f"{target.name}.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
