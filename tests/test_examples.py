"""The example scripts do what they say, on a small scale."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

Run = Callable[..., ModuleType]


def test_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the example's data come with scikit-learn")
    command = [sys.executable, str(ROOT / "examples/digits.py"), "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--steps", "60"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    validation = {name: float(words[2]) for name, words in lines.items() if "test" in words}
    assert validation["mobo"] >= max(validation["finetune"], validation["swa"])
    assert (tmp_path / "fused/model.safetensors").is_file()
    assert "Digits" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Runs an example's `main` in this process, which has loaded the libraries already."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def call(name: str, *arguments: str) -> ModuleType:
        given = [f"{name}.py", "--out", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr(sys, "argv", given)
        module = importlib.import_module(name)
        module.main()
        return module

    yield call
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize(
    ("name", "arguments", "package", "first"),
    [
        ("trainer", (), "transformers", "bert.embeddings.LayerNorm.bias"),
        ("seq2seq", (), "transformers", "decoder.block.0.layer.0.SelfAttention.k.weight"),
        ("trl_sft", (), "trl", "lm_head.weight"),
        ("trl_sft", ("--lora",), "trl", "lm_head.weight"),
        ("sentence_embeddings", (), "sentence_transformers", "embeddings.LayerNorm.bias"),
        ("lightning_digits", (), "lightning", "1.bias"),
    ],
)
def test_a_trainer_of_a_library(
    name: str,
    arguments: tuple[str, ...],
    package: str,
    first: str,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    pytest.importorskip(package, reason=f"the example is for {package}")
    run(name, "--steps", "24", *arguments)
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("mobo")
    fusion = json.loads((tmp_path / "out/fused/fusion.json").read_text())
    weights = [member["weight"] for member in fusion["members"]]
    assert len(weights) >= 4
    assert sum(weights) == pytest.approx(1.0)
    assert min(load_file(tmp_path / "out/fused/model.safetensors")) == first
    assert (tmp_path / "out/report.html").is_file()


def test_setfit(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    setfit = pytest.importorskip("setfit", reason="the example is for setfit")
    example = run("setfit_texts", "--steps", "12")
    said = capsys.readouterr().out.strip().splitlines()[-1]
    accuracy = float(said.split("'accuracy': ")[1].rstrip("}"))
    # The model that was saved, encoder and classifier, is the one that was measured.
    rows = example.rows(80, 1)
    model = setfit.SetFitModel.from_pretrained(str(tmp_path / "out/fused"))
    predicted = model.predict(list(rows["text"]), as_numpy=True)
    given = [("bad", "good")[label] for label in rows["label"]]
    right = [p == label for p, label in zip(predicted, given, strict=True)]
    assert sum(right) / len(right) == pytest.approx(accuracy)
