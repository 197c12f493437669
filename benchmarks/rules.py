"""Which rule for choosing w generalises: gains on test over random re-splits of landscapes.

    python -m benchmarks.rules --json
    python -m benchmarks.rules --candidates mobo --splits 24 --cache runs/rules --store

A recorded landscape's rows are split anew, candidates evaluated on validation, and what each
rule chooses is looked up on test; points of the metric over the best single member, with
standard errors over the splits. `--candidates mobo` takes what the search evaluates (10 s a
split), `random` points of the simplex. Without the recorded data the command says so.

gain_consensus, gain_best    mean over the landscapes, of the rule with its guard, and of `best`
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import optuna

from benchmarks.landscapes import recorded, tried
from benchmarks.protocols import records
from fusetune.members.disk import write_json

CONSENSUS = "consensus, towards the anchor"


def candidates(
    kind: str, n: int, part: recorded.Part, name: str, number: int, cache: Path | None
) -> np.ndarray:
    """The evaluated w of one split, from the cache if they are there."""
    k = len(part.logits)
    if kind == "random":
        return recorded.random_candidates(k, n, number)
    file = None if cache is None else cache / f"{name}-{k}-{n}-{number}.npy"
    if file is not None and file.exists():
        return np.load(file)
    found = recorded.searched_candidates(part, n, number)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, found)
    return found


def gains(file: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Rule → gain over the best member on test in every split, in points."""
    whole, n = recorded.load(file, options.members)
    n = int(n * options.share)
    found: dict[str, list[float]] = {}
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/landscapes"))
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
    files = sorted(options.data.glob("*.npz")) if options.data.is_dir() else []
    if not files:
        print(json.dumps({"missing": str(options.data)}))
        return
    found = {file.stem: gains(file, options) for file in files}
    rules = list(found[files[0].stem])
    table = {
        rule: {
            name: [
                float(np.mean(g[rule])),
                float(np.std(g[rule], ddof=1) / len(g[rule]) ** 0.5),
            ]
            for name, g in found.items()
        }
        for rule in rules
    }
    mean = {rule: float(np.mean([g for g, _ in row.values()])) for rule, row in table.items()}
    if options.store:
        records.FOLDER.mkdir(exist_ok=True)
        settings = {k: getattr(options, k) for k in ("candidates", "evaluations", "splits")}
        write_json(
            records.FOLDER / f"rules-{options.candidates}.json", {**settings, "rules": table}
        )
    if options.json:
        print(json.dumps({"gain_consensus": mean[CONSENSUS], "gain_best": mean["best"]}))
        return
    for rule in sorted(rules, key=lambda rule: -mean[rule]):
        cells = "  ".join(f"{n} {g:+.2f} ± {e:.2f}" for n, (g, e) in table[rule].items())
        print(f"{rule:44} {mean[rule]:+.2f}   {cells}")


if __name__ == "__main__":
    main()
