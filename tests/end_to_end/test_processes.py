"""`torchrun -m fusetune run`: one run in several processes, on CPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from benchmarks import tiny
from fusetune.errors import RecipeError
from fusetune.pipeline import run
from fusetune.pipeline.together import joined
from fusetune.recipe_file import load

ROOT = Path(__file__).resolve().parents[2]
TRAINING = (
    "search.trials=1",
    "train.epochs=8",
    "train.arguments.learning_rate=5e-3",
    "train.arguments.per_device_train_batch_size=8",
    "train.arguments.average_tokens_across_devices=false",
)
FSDP = (
    "train.arguments.fsdp=true",
    'train.arguments.fsdp_config={"transformer_layer_cls_to_wrap": ["BertLayer"]}',
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    file = folder / "recipe.yaml"
    file.write_text(tiny.make_recipe(folder))
    return file


def launch(recipe: Path, out: str, *overrides: str) -> subprocess.Popen[str]:
    """Two processes of one run, in a session of their own."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["--nproc-per-node=2", "-m", "fusetune", "run", str(recipe), "--out", out]
    return subprocess.Popen(
        [*launcher, *command, *overrides],
        cwd=recipe.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(recipe: Path, out: str, *overrides: str) -> str:
    process = launch(recipe, out, *overrides)
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed[-4000:]
    return printed


def weights(folder: Path) -> dict[str, bytes]:
    files = (*folder.glob("members/*/*.safetensors"), *folder.glob("fused/*.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def values(folder: Path) -> dict[str, dict[str, float]]:
    """Loss and accuracy of every method on both splits."""
    methods = json.loads((folder / "results.json").read_text())["methods"]
    return {
        f"{name} {split}": {n: entry[split][n]["value"] for n in ("loss", "accuracy")}
        for name, entry in methods.items()
        for split in ("validation", "test")
    }


@pytest.mark.slow
def test_a_run_under_fsdp_that_is_killed_ends_as_an_undisturbed_one(recipe: Path) -> None:
    printed = finished(recipe, "whole", *TRAINING, *FSDP)
    assert printed.count("reading the data") == 1, "one process speaks"
    whole, killed = recipe.parent / "whole", recipe.parent / "killed"
    assert len(weights(whole)) == 5
    process = launch(recipe, "killed", *TRAINING, *FSDP)
    until = time.monotonic() + 600
    while len(list(killed.glob("members/step-*"))) < 2:  # in the middle of the training
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < until
        time.sleep(0.02)
    for pid in workers("killed"):  # they are in sessions of their own
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not (killed / "stages" / "report.json").exists(), "killed before its end"
    finished(recipe, "killed", *TRAINING, *FSDP)
    assert weights(killed) == weights(whole)
    assert values(killed) == values(whole)

    # The same members in one process have the same values, and in two with a copy each.
    given = yaml.safe_load(recipe.read_text())
    given |= {
        "search": {"trials": 0},
        "train": {"checkpoints": str(whole / "members"), "members": 4},
    }
    fuses = recipe.with_name("fuses.yaml")
    fuses.write_text(yaml.safe_dump(given))
    alone = run(load(fuses), recipe.parent / "alone").path
    finished(fuses, "copies")
    assert values(recipe.parent / "copies") == values(alone)
    # Methods that look at values choose alike only if no rounding decides.
    for row, found in values(alone).items():
        if row.startswith(("finetune", "swa")):
            assert values(whole)[row] == pytest.approx(found, rel=1e-5)


@pytest.mark.slow
def test_all_processes_give_up_a_training_together(tiny_recipe: str, tmp_path: Path) -> None:
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "broken"
    recipe.write_text(tiny_recipe)
    overrides = [
        "search.trials=1",
        "search.epochs=3",
        "search.space.learning_rate={choices: [0.004]}",
        "train.members=3",
        "train.arguments={learning_rate: 0.004, lr_scheduler_type: constant}",
    ]
    run(load(recipe, overrides), folder, stage="search")
    path = folder / "stages/search.json"
    search = json.loads(path.read_text())
    search["params"]["learning_rate"] = 0.1  # as if the light trial had borne it
    path.write_text(json.dumps(search))
    finished(recipe, "broken", *overrides)
    train = json.loads((folder / "stages/train.json").read_text())
    first, *_, last = train["trajectories"][0]["attempts"]
    assert (first["learning_rate"], first["kept"]) == (0.1, False)
    assert train["params"]["learning_rate"] <= 0.004
    assert last["value"] > first["value"]
    assert len(weights(folder)) == 4


def workers(out: str) -> list[int]:
    """The processes of that run, and their launcher."""
    import psutil

    lines = [(p.pid, p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    return [pid for pid, line in lines if "fusetune" in line and out in line]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("executor.kind=ray", "executor.kind: ray"),
        ("model.device_map=auto", r"model\.device_map"),
        ("search.objective=fused", "search.objective: fused"),
        ("fuse.methods=[finetune,learned]", "fuse.methods: learned under FSDP"),
        ("model.lora=4 search.trials=0 search.variant=full", r"model\.lora under FSDP"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_at_once(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, override: str, named: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    wanted = load(recipe, (*FSDP, *override.split(" ")))
    with (
        pytest.raises(RecipeError, match=f"2 processes were launched.*{named}"),
        joined(wanted),
    ):
        pass
