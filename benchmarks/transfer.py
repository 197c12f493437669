"""Whether light trials rank hyper-parameters as the full model does, on a protocol's tasks.

    python -m benchmarks.transfer --protocol b --tasks mrpc,cola --seeds 41 --trials 8
    python -m benchmarks.transfer --json

Runs are those of `fusetune transfer` with the protocol's settings, resumable at any moment.
What each finds is stored in benchmarks/results/transfer, for docs/results.md.

light_full      Spearman's ρ of light and full trainings, mean over all that is stored
light_fused     of light trainings and fused models
member_fused    of best members and fused models
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from benchmarks.protocols import settings
from benchmarks.protocols.options import parser as options_of
from benchmarks.protocols.transfers import FOLDER, stored, summary
from fusetune.errors import FusetuneError
from fusetune.members.disk import write_json
from fusetune.pipeline.display import Display
from fusetune.pipeline.transfer import transfer
from fusetune.recipe_file import derive


def run(options: argparse.Namespace) -> None:
    """Train what is missing of every task and seed, and store it."""
    display = Display(quiet=options.quiet)
    for seed in map(int, options.seeds.split(",")):
        for task in options.tasks.split(","):
            recipe, overrides = settings.recipe(
                task, options.protocol, options.data, precision=options.precision
            )
            out = options.runs / options.protocol / FOLDER / f"{task}-{seed}"
            found = transfer(
                derive(recipe, {"seed": seed}), out, trials=options.trials, display=display
            )
            kept = settings.without_place(overrides)
            del found["subject"]  # what the settings say, and where the data lie
            name = f"{options.protocol}-{task}-{seed}.json"
            (options.results / FOLDER).mkdir(parents=True, exist_ok=True)
            write_json(
                options.results / FOLDER / name,
                {"protocol": options.protocol, "task": task, "settings": kept, **found},
            )
            print(f"{task} {seed}: {found['sentence']}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_of(__doc__, settings.SEEDS[:1])
    parser.add_argument("--trials", type=int, default=8, help="λ that are trained twice")
    options = parser.parse_args(arguments)
    try:
        if options.protocol is not None:
            run(options)
    except FusetuneError as error:
        raise SystemExit(f"Error: {error}") from None
    means = summary(stored(options.results))
    print(
        json.dumps(means) if options.json else "\n".join(f"{k} {v}" for k, v in means.items())
    )


if __name__ == "__main__":
    main()
