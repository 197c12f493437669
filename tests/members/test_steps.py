"""The step of a checkpoint: of a Trainer's state, of its name, of its manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusetune.members.checkpoints.steps import checkpoint_of, step_of
from fusetune.members.manifest import Manifest


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("checkpoint_500_best", 500),
        ("step-000123", 123),
        ("trajectory-2-step-000123", 123),
        ("step1000", 1000),
        ("global_step500", 500),
        ("iter_0001000", 1000),
        ("500steps", 500),
        ("ep1-ba500-rank0.pt", 500),  # Composer
        ("epoch=3-step=1200.ckpt", 1200),
        ("epoch=3-step=1200-v1.ckpt", 1200),
        ("step=7-loss=0.ckpt", 7),
        ("epoch=03-val_loss=0.51.ckpt", 3),
        ("epoch=3-val_acc=91.ckpt", 3),
        ("model_ep200_acc0.51.pt", 200),
        ("model.ckpt-1000.pt", 1000),
        ("llama-7b-step500", 500),
        ("model_12.pt", 12),
        ("weights.05-0.31.pt", 5),
        ("1000.pt", 1000),
        ("1000", 1000),
        # Metrics, versions, sizes, seeds, dates and parts of numbers count nothing.
        ("best_model_91.pt", None),
        ("best-acc-91.pt", None),
        ("val_f1_91.pt", None),
        ("checkpoint_acc_91.pt", None),
        ("train_loss_step=12.ckpt", None),
        ("ckpt_0.91.pt", None),
        ("model-3e-5.pt", None),
        ("ckpt_best.pt", None),
        ("last.ckpt", None),
        ("last-v1.ckpt", None),
        ("roberta-v2", None),
        ("model-220M", None),
        ("seed42", None),
        ("step10k", None),
        ("checkpoint-2024-01-05_12-00", None),
        # Iterations may begin anew in each epoch; the names are in order as they are.
        ("epoch_1_iter_300.pt", None),
    ],
)
def test_names(name: str, step: int | None, tmp_path: Path) -> None:
    path = tmp_path / "out" / name  # pytest's own folder has the name in its own
    path.parent.mkdir()
    if path.suffix in (".pt", ".ckpt"):
        path.touch()
    else:
        path.mkdir()
    assert step_of(path) == step
    manifest = Manifest(9, None, {})
    assert step_of(path, manifest) == (9 if step is None else step)


@pytest.mark.parametrize("state", [25, "many", None, True, -1])
def test_the_trainer_knows_best(state: object, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": state}))
    assert step_of(folder, Manifest(9, None, {})) == (25 if state == 25 else 10)
    (folder / "trainer_state.json").write_text("[" * 100_000)
    assert step_of(folder) == 10


def test_the_folder_around_names_what_has_no_number(tmp_path: Path) -> None:
    for inner in ("sft", "pytorch_model.bin"):
        (tmp_path / f"checkpoint-10/{inner}").mkdir(parents=True)
        assert checkpoint_of(tmp_path / f"checkpoint-10/{inner}").name == "checkpoint-10"
        assert step_of(tmp_path / f"checkpoint-10/{inner}") == 10
    (tmp_path / "checkpoint-10/trainer_state.json").write_text('{"global_step": 25}')
    assert step_of(tmp_path / "checkpoint-10/sft") == 25
    (tmp_path / "model_2/best").mkdir(parents=True)  # a number of something else
    assert checkpoint_of(tmp_path / "model_2/best").name == "best"
