"""The papers' tables on models that can be run here, and fusetune's default among the rows.

    python -m benchmarks.quality --protocol b --tasks mrpc,cola --seeds 41,42 --delete-members
    python -m benchmarks.quality --protocol b --plan
    python -m benchmarks.quality --summary --json
    python -m benchmarks.quality --page

Runs are those of `fusetune compare`, resumable at any moment; of each task, seed and method one
small JSON is kept in benchmarks/results. The rest is computed from these files alone.

gain_points     test gain of fusetune's default over `finetune`, mean over tasks and seeds
gain_p_value    two-sided, pooled over tasks and seeds (benchmarks/protocols/pooled.py)
share_closed    share of the distance from `finetune` to `oracle`
rank            its place among all candidates; ahead: those with a larger gain
by_task         the same gain for each task, with its interval: is it ever worse?
by_seed         and for each seed
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.protocols import pooled, records, settings, transfers
from benchmarks.protocols.cost import cost
from benchmarks.protocols.options import parser as options_of
from benchmarks.protocols.page import page, rules
from fusetune.errors import FusetuneError, RecipeError
from fusetune.members.disk import write_text
from fusetune.report.wording import duration, size

if TYPE_CHECKING:
    from benchmarks.protocols.job import Job

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
MEMBER_BYTES = 22.7e6 * 4


def jobs(options: argparse.Namespace) -> list[Job]:
    """Every try of every task and seed; the protocol's own settings first."""
    from benchmarks.protocols.job import Job

    attempts = options.tries.split(",") if options.tries else [""]
    given = options.methods.split(",") if options.methods else None
    protocol, data, scale = options.protocol, options.data, options.scale
    precision = options.precision

    def job(task: str, seed: int, attempt: str) -> Job:
        methods = given or settings.rows(attempt)
        return Job.of(protocol, task, seed, methods, data, scale, attempt, precision)

    return [
        job(task, seed, attempt)
        for attempt in attempts
        for seed in map(int, options.seeds.split(","))
        for task in options.tasks.split(",")
    ]


def plan(options: argparse.Namespace) -> None:
    """What would run, and what it is estimated to cost."""
    total, kept = 0.0, 0.0
    for job in jobs(options):
        missing = job.missing(options.results)
        if not missing:
            print(f"{job.task:5} {job.seed} {job.attempt:16} stored")
            continue
        need = cost(job.recipe, job.task, job.protocol, missing)
        space = MEMBER_BYTES * job.recipe.train.members
        total, kept = total + need.total, kept + space
        print(
            f"{job.task:5} {job.seed} {job.attempt:16} {duration(need.total):>12} of one core "
            f"(training {duration(need.training)}, validation {duration(need.validation)}, "
            f"test {duration(need.test)}), {size(space)}: {', '.join(missing)}"
        )
    print(f"In all about {duration(total)} of one core; members take {size(kept)}.")


def run(options: argparse.Namespace) -> None:
    """Make what is missing; a task that cannot be made does not stop the others."""
    from benchmarks.protocols.runs import run as run_job
    from fusetune.pipeline.display import Display

    display, failed = Display(quiet=options.quiet), []
    for job in jobs(options):
        try:
            written = run_job(
                job,
                options.runs,
                options.results,
                delete_members=options.delete_members,
                display=display,
            )
        except FusetuneError as error:
            failed.append(f"{job.task} {job.seed} {job.attempt}: {error}")
            continue
        print(
            f"{job.task} {job.seed} {job.attempt}: {len(written)} records written", flush=True
        )
    if failed:
        raise SystemExit("\n".join(failed))


def summarise(options: argparse.Namespace) -> None:
    """Print what the goal of the project is measured by."""
    protocol = options.protocol or "b"
    found = pooled.summary(records.read_all(options.results), protocol, options.subject)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:20} {value}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_of(__doc__, settings.SEEDS)
    parser.add_argument(
        "--methods",
        help=f"default: {','.join(settings.METHODS)}; of a try {','.join(settings.TRIED)}, "
        "of one of the search bomf, of best-trials bilevel",
    )
    parser.add_argument("--tries", help=f"other settings: {', '.join(settings.TRIES)}")
    parser.add_argument("--scale", choices=settings.SCALES, default="quick")
    parser.add_argument("--quick", dest="scale", action="store_const", const="quick")
    parser.add_argument("--delete-members", action="store_true", help="once a seed is complete")
    parser.add_argument("--plan", action="store_true", help="what would run, and its cost")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--subject", default="", help="row that stands for fusetune")
    parser.add_argument("--page", action="store_true", help="write docs/results.md")
    parser.add_argument("--out", type=Path, default=PAGE, help="of --page")
    options = parser.parse_args(arguments)
    try:
        if options.page:
            found = records.read_all(options.results)
            other = rules(options.results), transfers.stored(options.results)
            write_text(options.out, page(found, options.subject, *other))
        elif options.summary or options.protocol is None:
            if options.plan:
                raise RecipeError("--plan needs a protocol.", "Give --protocol b.")
            summarise(options)
        elif options.plan:
            plan(options)
        else:
            run(options)
    except FusetuneError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
