"""Members of a training that FSDP spreads over two processes, on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import tiny
from fusetune.errors import RecipeError
from fusetune.training.arguments import build

SCRIPT = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from fusetune.training.collect import MemberCollector

model, out, fsdp = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "fsdp"
torch.manual_seed(0)
torch.set_num_threads(1)
off = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
trained = AutoModelForSequenceClassification.from_pretrained(model, **off)
rows = [{"input_ids": torch.arange(4, 10), "labels": torch.tensor(1)}] * 16  # in any order
more = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["BertLayer"]}}
arguments = TrainingArguments(
    str(out / "work"), use_cpu=True, max_steps=4, learning_rate=0.01, save_strategy="no",
    per_device_train_batch_size=2 if fsdp else 4, report_to="none", seed=1, max_grad_norm=0.0,
    lr_scheduler_type="constant", optim="sgd", average_tokens_across_devices=False,
    **(more if fsdp else {}),
)
collector = MemberCollector(out / "members", 2, 0.5)
Trainer(model=trained, args=arguments, train_dataset=rows, callbacks=[collector]).train()
"""


def run(
    folder: Path, model: Path, *launcher: str, way: str
) -> subprocess.CompletedProcess[str]:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2] / "src")
    environment = {
        **os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    command = [sys.executable, *launcher, str(script), str(model), str(folder / way), way]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.slow
def test_members_under_fsdp_are_whole_and_the_same(tmp_path: Path) -> None:
    model = tiny.make_model(tmp_path / "model")
    alone = run(tmp_path, model, way="alone")
    assert alone.returncode == 0, alone.stderr[-2000:]
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    spread = run(tmp_path, model, *launcher, way="fsdp")
    assert spread.returncode == 0, spread.stderr[-4000:]
    names = ["step-000003", "step-000004"]
    for way in ("alone", "fsdp"):
        assert sorted(p.name for p in (tmp_path / way / "members").iterdir()) == names
    for name in names:
        first, second = (
            load_file(tmp_path / way / "members" / name / "model.safetensors")
            for way in ("alone", "fsdp")
        )
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert value.shape == second[key].shape
            assert value.isfinite().all()
            torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5)
    config = (tmp_path / "fsdp/members" / names[0] / "config.json").read_text()
    assert "FSDP" not in config


def test_one_process_cannot_spread_a_training(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.arguments\.fsdp: .* this is one"):
        build(tmp_path, {"fsdp": True}, epochs=1, seed=1)
