"""Which rule for choosing w generalises: gains on test over random re-splits of landscapes.

    python -m benchmarks.rules --json
    python -m benchmarks.rules --candidates mobo --splits 24 --cache runs/rules --store

A landscape's rows are split anew, candidates evaluated on validation, and what each rule
chooses is looked up on test; points of the metric over the best single member, by task, with
standard errors over the splits, or over the landscapes where a task has several. `--candidates
mobo` takes what the search evaluates (some seconds a split), `random` points of the simplex.

Landscapes are those that runs of the quality protocols leave (benchmarks/results/landscapes),
or files and folders given by --data; those that end in `light` had a λ that an earlier search
found by light trials alone. Without any the command says so.

gain_default, gain_best    mean over the tasks, of the default rule, and of `best`
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna

from benchmarks.landscapes import recorded, tried
from benchmarks.protocols import job, records
from fusetune.members.disk import write_json

Gains = dict[str, list[float]]


def candidates(
    kind: str, n: int, part: recorded.Part, name: str, number: int, cache: Path | None
) -> np.ndarray:
    """The evaluated w of one split, from the cache if they are there."""
    k = len(part.logits)
    if kind == "random":
        return recorded.random_candidates(k, n, number)
    file = None if cache is None else cache / f"{name}-{k}-{n}-{number}.npy"
    if file is not None and file.exists():
        return np.asarray(np.load(file))
    found = recorded.searched_candidates(part, n, number)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, found)
    return found


def gains(file: Path, options: argparse.Namespace) -> Gains:
    """Rule → gain over the best member on test in every split, in points."""
    whole, n = recorded.load(file, options.members)
    n = int(n * options.share)
    found: Gains = {}
    for number in range(options.splits):
        validation, test = recorded.resplit(whole, n, number)
        found_w = candidates(
            options.candidates,
            options.evaluations,
            validation,
            file.stem,
            number,
            options.cache,
        )
        seen = tried.Seen(found_w, validation, number)
        chosen = tried.all_rules(seen) | tried.guarded(seen)
        values = test.metric.batched(test.mixed(np.array(list(chosen.values()))), test.labels)
        for name, value in zip(chosen, 100.0 * (values - values[0]), strict=True):
            found.setdefault(name, []).append(float(value))
    return found


def by_task(found: Mapping[str, Gains]) -> dict[str, list[Gains]]:
    """Task → the gains of its landscapes; a recorded landscape is a task of its own."""
    tasks: dict[str, list[Gains]] = {}
    for name, gain in found.items():
        task = name.split("-")[1] if "-" in name else f"{name}, recorded"
        tasks.setdefault(task, []).append(gain)
    return tasks


def cell(rule: str, landscapes: Sequence[Gains]) -> list[float]:
    """Mean gain of a rule, and its standard error."""
    means = [float(np.mean(gain[rule])) for gain in landscapes]
    values = means if len(means) > 1 else landscapes[0][rule]
    return [float(np.mean(means)), float(np.std(values, ddof=1) / len(values) ** 0.5)]


def files(given: Sequence[Path]) -> list[Path]:
    """The landscapes of files and folders, in order."""
    return [
        file
        for path in given
        for file in (sorted(path.glob("*.npz")) if path.is_dir() else [path])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[records.FOLDER / job.LANDSCAPES]
    )
    parser.add_argument("--candidates", choices=("random", "mobo"), default="random")
    parser.add_argument("--evaluations", type=int, default=90)
    parser.add_argument("--members", type=int, default=0, help="the last so many alone")
    parser.add_argument("--share", type=float, default=1.0, help="of the validation rows")
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--cache", type=Path, help="keeps the candidates of mobo")
    parser.add_argument("--store", action="store_true", help="for docs/results.md")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    landscapes = files(options.data)
    if not landscapes:
        print(json.dumps({"missing": list(map(str, options.data))}))
        return
    tasks = by_task({file.stem: gains(file, options) for file in landscapes})
    rules = list(next(iter(tasks.values()))[0])
    table = {rule: {task: cell(rule, found) for task, found in tasks.items()} for rule in rules}
    mean = {rule: float(np.mean([g for g, _ in row.values()])) for rule, row in table.items()}
    if options.store:
        records.FOLDER.mkdir(exist_ok=True)
        settings = {k: getattr(options, k) for k in ("candidates", "evaluations", "splits")}
        settings |= {"landscapes": {task: len(found) for task, found in tasks.items()}}
        settings["default"] = tried.DEFAULT
        write_json(
            records.FOLDER / f"rules-{options.candidates}.json", {**settings, "rules": table}
        )
    if options.json:
        print(json.dumps({"gain_default": mean[tried.DEFAULT], "gain_best": mean["best"]}))
        return
    for rule in sorted(rules, key=lambda rule: -mean[rule]):
        cells = "  ".join(f"{n} {g:+.2f} ± {e:.2f}" for n, (g, e) in table[rule].items())
        print(f"{rule:44} {mean[rule]:+.2f}   {cells}")


if __name__ == "__main__":
    main()
