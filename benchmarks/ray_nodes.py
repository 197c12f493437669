"""A cluster of three nodes on one machine; one is removed in mid-run.

    python -m benchmarks.ray_nodes --json

`lost`, `doubled`: trials that are missing, or there twice; `wrong`: with another value than the
one of their w; `tried_again`: those whose worker died with the node.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import threading
import time

import optuna
from ray.cluster_utils import Cluster

from benchmarks.ray_scaling import F1, MEMBERS, Simulated
from benchmarks.suggest import Mixtures
from fusetune.executors.ray import create
from fusetune.objective import LOSS
from fusetune.optimization.samplers import FusionSampler, ask_weights, weights_of
from fusetune.optimization.study import Loop
from fusetune.optimization.telling import LOST


def run(trials: int, seconds: float) -> dict[str, int]:
    """Start the cluster, search, remove a node after a quarter of the trials."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    told = 0

    def remove(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal told
        told += 1
        if told == max(1, trials // 4):
            gone = threading.Thread(target=cluster.remove_node, args=(nodes[1], False))
            gone.start()

    executor = create(address=cluster.address, workers=4, gpus_per_worker=0)
    landscape = Mixtures.random(MEMBERS, 200, 0)
    objectives = (LOSS, F1)
    loop = Loop(optuna.storages.InMemoryStorage(), executor, on_trial=remove)
    try:
        study = loop.run(
            "nodes",
            FusionSampler(MEMBERS, objectives, seed=0, budget=trials),
            functools.partial(ask_weights, k=MEMBERS),
            Simulated(landscape, seconds),
            trials=trials,
            objectives=objectives,
        )
    finally:
        executor.close()
        cluster.shutdown()
    done = study.get_trials(deepcopy=False)
    numbers = [t.number for t in done]
    true = [Simulated(landscape, 0.0)(weights_of(t), 0, lambda s, v: False) for t in done]
    return {
        "trials": trials,
        "complete": sum(t.state == optuna.trial.TrialState.COMPLETE for t in done),
        "lost": len(set(range(trials)) - set(numbers)),
        "doubled": len(numbers) - len(set(numbers)),
        "wrong": sum(
            t.values != [f.values["loss"], f.values["f1"]]
            for t, f in zip(done, true, strict=True)
        ),
        "tried_again": sum(LOST in t.user_attrs for t in done),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    found = run(options.trials, options.seconds)
    print(json.dumps({**found, "seconds": round(time.perf_counter() - started, 1)}))


if __name__ == "__main__":
    main()
