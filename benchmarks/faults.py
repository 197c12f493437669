"""Kill the driver at random moments, resume, and compare with a run that nobody disturbed.

    python benchmarks/faults.py --kills 100 --json

A small run (a model from a configuration, generated data) is made once undisturbed. Then it is
made again and again, each time killed (SIGKILL, the whole process group) at `--per-run` random
moments and started again after each. Moments are drawn evenly over the stages: a stage, and
a part of its time. `lost`: trials of the undisturbed run that are missing, or not the same.
`doubled`: trials that it does not have. `different`: runs whose results.json (but for times),
fused weights or fusion.json are not the same, bit by bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # as a script: the project's root comes first
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import tiny

STAGES = ("check", "search", "train", "fuse", "report")
LIMIT = 600.0  # seconds of one run: against a hang alone
SAME_BYTES = ("fused/model.safetensors", "fused/config.json", "fused/fusion.json")

Trial = tuple[str, int, str, tuple[float, ...], tuple[tuple[str, Any], ...]]


@dataclass(frozen=True, slots=True)
class Moment:
    """When to kill.

    Attributes:
        stage: Place of the stage in `STAGES`.
        part: Of the time that the stage took undisturbed, 0 to 1.
    """

    stage: int
    part: float

    @classmethod
    def draw(cls, rng: random.Random) -> Moment:
        """Evenly over the stages, and over the time of each."""
        return cls(rng.randrange(len(STAGES)), rng.random())


@dataclass
class Tally:
    """What was found.

    Attributes:
        kills: Processes that were killed while they worked.
        lost: Trials of the undisturbed run that are missing or differ.
        doubled: Trials that the undisturbed run does not have.
        different: Runs with another result.
        stages: Kills by the stage that was being worked on.
        details: What differed, in words.
    """

    kills: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)


def start(recipe: str, folder: Path, overrides: Sequence[str] = ()) -> BaseProcess:
    """A run in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fusetune.pipeline", "transformers.trainer"])
    process = context.Process(target=tiny.work, args=(recipe, str(folder), tuple(overrides)))
    process.start()
    return process


def stage_of(folder: Path) -> int:
    """The place in `STAGES` of the stage that a run is at; one past the last if it is done."""
    done = [name for name in STAGES[1:] if (folder / "stages" / f"{name}.json").exists()]
    if done:
        return STAGES.index(done[-1]) + 1
    return 1 if (folder / "environment.json").exists() else 0


def undisturbed(recipe: str, folder: Path) -> list[float]:
    """Make a run; seconds that each stage took."""
    process = start(recipe, folder)
    entered = [time.monotonic()] + [0.0] * len(STAGES)
    while process.is_alive() and time.monotonic() < entered[0] + LIMIT:
        for place in range(1, stage_of(folder) + 1):
            entered[place] = entered[place] or time.monotonic()
        time.sleep(0.002)
    finish(process)
    ends = [at or time.monotonic() for at in entered]
    return [max(0.001, b - a) for a, b in itertools.pairwise(ends)]


def finish(process: BaseProcess) -> None:
    """Wait for the end of a run that has to succeed."""
    process.join(LIMIT)
    if process.exitcode != 0:
        raise SystemExit(f"A run ended with {process.exitcode}.")


def killed(
    process: BaseProcess, folder: Path, moment: Moment, seconds: Sequence[float]
) -> bool:
    """Kill a run at a moment; False if it was done before."""
    while stage_of(folder) < moment.stage and process.is_alive():
        time.sleep(0.002)
    deadline = time.monotonic() + moment.part * seconds[moment.stage]
    while time.monotonic() < deadline and process.is_alive():
        time.sleep(0.001)
    if not process.is_alive():
        return False
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # forked a moment ago, without a group of its own yet
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def disturbed(
    recipe: str, folder: Path, moments: Sequence[Moment], seconds: Sequence[float], tally: Tally
) -> None:
    """Make a run that is killed at each moment in turn, and started again."""
    for moment in sorted(moments, key=lambda m: (m.stage, m.part)):
        process = start(recipe, folder)
        if killed(process, folder, moment, seconds):
            tally.kills += 1
            tally.stages[STAGES[min(stage_of(folder), len(STAGES) - 1)]] += 1
        else:
            finish(process)
            return
    finish(start(recipe, folder))


def trials(folder: Path) -> list[Trial]:
    """Every trial of every study of a run: (study, number, state, values, parameters)."""
    import optuna

    from fusetune.optimization.storage import open_storage, quiet

    storage = open_storage(folder / "trials.journal")
    found: list[Trial] = []
    with quiet():
        for name in sorted(optuna.get_all_study_names(storage)):
            for t in optuna.load_study(study_name=name, storage=storage).trials:
                params = tuple(sorted(t.params.items()))
                found.append((name, t.number, t.state.name, tuple(t.values or ()), params))
    return found


def figures(folder: Path) -> dict[str, Any]:
    """results.json without what measures time."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results.pop("cost")
    for entry in results["methods"].values():
        entry.pop("seconds")
    return results


def compare(whole: Path, cut: Path, tally: Tally) -> None:
    """Count what a run that was killed has lost, doubled or changed."""
    before, after = Counter(trials(whole)), Counter(trials(cut))
    places = Counter(key[:2] for key in before.elements())
    lost = list((before - after).elements())
    doubled = list((Counter(key[:2] for key in after.elements()) - places).elements())
    wrong = [] if figures(whole) == figures(cut) else ["results.json"]
    wrong += [n for n in SAME_BYTES if (whole / n).read_bytes() != (cut / n).read_bytes()]
    tally.lost += len(lost)
    tally.doubled += len(doubled)
    tally.different += bool(wrong)
    tally.details += [f"{cut.name}: {what}" for what in (*lost, *doubled, *wrong)]


def measure(kills: int, per_run: int, seed: int, place: Path) -> Mapping[str, Any]:
    """Kill until there were so many kills; every run is finished and compared."""
    rng, tally, runs = random.Random(seed), Tally(), 0
    began = time.monotonic()
    recipe = tiny.make_recipe(place)
    seconds = undisturbed(recipe, place / "whole")
    while tally.kills < kills:
        runs += 1
        count = min(per_run, kills - tally.kills)
        moments = [Moment.draw(rng) for _ in range(count)]
        cut = place / f"cut-{runs}"
        disturbed(recipe, cut, moments, seconds, tally)
        compare(place / "whole", cut, tally)
        print(f"{tally.kills} kills in {runs} runs", file=sys.stderr, flush=True)
    return {
        "kills": tally.kills,
        "lost": tally.lost,
        "doubled": tally.doubled,
        "different": tally.different,
        "runs": runs,
        "stages": {name: tally.stages[name] for name in STAGES},
        "stage_seconds": dict(zip(STAGES, (round(s, 2) for s in seconds), strict=True)),
        "seconds": round(time.monotonic() - began, 1),
        "details": tally.details,
    }


def main() -> None:
    """Kill, resume, compare, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--per-run", type=int, default=5, help="Kills of one run.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fusetune-faults-") as place:
        found = measure(options.kills, options.per_run, options.seed, Path(place))
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    if found["lost"] or found["doubled"] or found["different"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
