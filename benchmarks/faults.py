"""Disturb a run at random moments, and compare with one that nobody disturbed.

    python benchmarks/faults.py --kills 100 --json
    python benchmarks/faults.py --workers 20 --json       # needs the extra ray
    python benchmarks/faults.py --postgresql 10 --json    # needs a PostgreSQL that is installed

A small run (a model from a configuration, generated data) is made once undisturbed. Then it is
made again and again, each time disturbed at `--per-run` random moments: its driver is killed
(SIGKILL, the whole process group) and started again, one of its Ray workers is killed, or
the PostgreSQL server that holds its trials is stopped and started again a little later. Moments
are drawn evenly over the stages: a stage, and a part of its time. `lost`: trials of the
undisturbed run that are missing, or not the same. `doubled`: trials that it does not have.
`different`: runs whose results.json (but for times), fused weights or fusion.json are not
the same, bit by bit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # as a script: the project's root comes first
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import postgresql, tiny
from benchmarks.disturbances import (
    STAGES,
    Disturbance,
    Driver,
    Moment,
    Restarts,
    Workers,
    prefix_of,
    stage_of,
    undisturbed,
)

__all__ = ["STAGES", "Tally", "compare", "measure", "stage_of"]

SAME_BYTES = ("fused/model.safetensors", "fused/config.json", "fused/fusion.json")

Trial = tuple[str, int, str, tuple[float, ...], tuple[tuple[str, Any], ...]]


@dataclass
class Tally:
    """What was found.

    Attributes:
        done: How often a run was disturbed while it worked.
        lost: Trials of the undisturbed run that are missing or differ.
        doubled: Trials that the undisturbed run does not have.
        different: Runs with another result.
        stages: The same by the stage that was being worked on.
        details: What differed, in words.
    """

    done: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)


def trials(folder: Path, location: str | Path) -> list[Trial]:
    """Every trial of every study of a run: (study, number, state, values, parameters)."""
    import optuna

    from fusetune.optimization.storage import open_storage, quiet

    storage, prefix = open_storage(location), prefix_of(folder)
    found: list[Trial] = []
    with quiet():
        for name in sorted(optuna.get_all_study_names(storage)):
            for t in optuna.load_study(study_name=name, storage=storage).trials:
                params = tuple(sorted(t.params.items()))
                values = tuple(t.values or ())
                study = name.removeprefix(prefix)
                found.append((study, t.number, t.state.name, values, params))
    return found


def figures(folder: Path) -> dict[str, Any]:
    """results.json without what measures time."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results.pop("cost")
    for entry in results["methods"].values():
        entry.pop("seconds")
    return results


def compare(
    whole: Path, cut: Path, tally: Tally, disturbance: Disturbance | None = None
) -> None:
    """Count what a run that was disturbed has lost, doubled or changed."""
    kind = disturbance or Driver()
    before, after = (Counter(trials(f, kind.storage(f))) for f in (whole, cut))
    places = Counter(key[:2] for key in before.elements())
    lost = list((before - after).elements())
    doubled = list((Counter(key[:2] for key in after.elements()) - places).elements())
    wrong = [] if figures(whole) == figures(cut) else ["results.json"]
    wrong += [n for n in SAME_BYTES if (whole / n).read_bytes() != (cut / n).read_bytes()]
    tally.lost += len(lost)
    tally.doubled += len(doubled)
    tally.different += bool(wrong)
    tally.details += [f"{cut.name}: {what}" for what in (*lost, *doubled, *wrong)]


def measure(
    count: int, per_run: int, seed: int, place: Path, disturbance: Disturbance | None = None
) -> Mapping[str, Any]:
    """Disturb until that was done so often; every run is finished and compared."""
    kind = disturbance or Driver()
    rng, tally, runs = random.Random(seed), Tally(), 0
    began = time.monotonic()
    recipe, whole = tiny.make_recipe(place), place / "whole"
    seconds = undisturbed(recipe, whole, kind.overrides(whole))
    while tally.done < count:
        runs += 1
        moments = [
            Moment.draw(rng, kind.stages) for _ in range(min(per_run, count - tally.done))
        ]
        cut = place / f"cut-{runs}"
        for stage in kind.run(recipe, cut, moments, seconds):
            tally.done += 1
            tally.stages[STAGES[stage]] += 1
        compare(whole, cut, tally, kind)
        print(f"{tally.done} {kind.key} in {runs} runs", file=sys.stderr, flush=True)
    return {
        kind.key: tally.done,
        "lost": tally.lost,
        "doubled": tally.doubled,
        "different": tally.different,
        "runs": runs,
        "stages": {name: tally.stages[name] for name in kind.stages},
        "stage_seconds": dict(zip(STAGES, (round(s, 2) for s in seconds), strict=True)),
        "seconds": round(time.monotonic() - began, 1),
        "details": tally.details,
    }


@contextlib.contextmanager
def chosen(options: argparse.Namespace) -> Iterator[tuple[int, Disturbance]]:
    """How often to do what, as the command line says."""
    rng = random.Random(f"{options.seed} which")
    if options.workers:
        yield options.workers, Workers(rng)
    elif options.postgresql:
        if why := postgresql.why_not():
            raise SystemExit(f"--postgresql: {why}.")
        # What an immediate stop must not lose is what was answered: as servers usually run.
        with postgresql.Server("-faults", sync=True) as server:
            yield options.postgresql, Restarts(rng, server)
    else:
        yield options.kills, Driver()


def main() -> None:
    """Disturb, resume, compare, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="Of the driver.")
    parser.add_argument("--workers", type=int, default=0, help="Kills of Ray workers.")
    parser.add_argument("--postgresql", type=int, default=0, help="Restarts of the server.")
    parser.add_argument("--per-run", type=int, default=5, help="Faults of one run.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="fusetune-faults-") as place,
        chosen(options) as (count, kind),
    ):
        found = measure(count, options.per_run, options.seed, Path(place), kind)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    if found["lost"] or found["doubled"] or found["different"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
