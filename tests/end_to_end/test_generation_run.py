"""A whole run of a generation task: a tiny T5 from its configuration, on made-up slots."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from fusetune.errors import FusetuneError
from fusetune.evaluation.ensemble import mixture_of
from fusetune.evaluation.token_ensemble import TokenEnsemble
from fusetune.members.weights import FusionWeights
from fusetune.models import scratch
from fusetune.pipeline import run
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.pipeline.workbench import open_members
from fusetune.recipe_file import parse
from tests import tiny

CONFIG = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 400,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slots")
    return tiny.save_rows(folder, tiny.slots, train=240, validation=24, test=24)


def recipe(data: Path) -> str:
    return f"""
seed: 41
task:
  kind: generation
  data: {data}
  name: slots
  prompt: "{{{{ mr }}}}"
  reference: ref
  metrics: [bleu, exact_match, rougeL]
  options:
    group_references: false
    generation: {{max_new_tokens: 24}}
model: {{name: tiny-t5, precision: float32, device: cpu}}
search: {{trials: 0}}
train:
  epochs: 8
  members: 4
  collect_from: 0.5
  arguments: {{learning_rate: 1.0e-2, per_device_train_batch_size: 16}}
fuse:
  evaluations: 12
  methods: [finetune, swa, greedy, learned, twa, fisher, oracle, mobo]
"""


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configurations" / "tiny-t5"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr(scratch, "CONFIGURATIONS", folder.parent)


@pytest.mark.usefixtures("configuration")
def test_a_run_from_configuration_to_report(data: Path, tmp_path: Path) -> None:
    made = run(parse(recipe(data)), tmp_path / "run")
    results = json.loads(made.results.read_text())
    for entry in results["methods"].values():
        for split in ("validation", "test"):
            assert set(entry[split]) == {"loss", "bleu", "exact_match", "rougeL"}
    best = results["methods"]["mobo"]["validation"]
    assert best["bleu"]["value"] > 30  # it has learned something
    members = results["methods"]["finetune"]["validation"]
    assert best["bleu"]["value"] >= members["bleu"]["value"]
    notes = " ".join(results["notes"])
    assert "does not predict bleu" not in notes  # the prior never said that it would
    assert "texts also stand in train" in notes

    (example, *_) = results["examples"]
    assert set(example["texts"]) == {results["chosen"], "finetune"}
    page = made.report.read_text()
    assert "Generated texts" in page
    assert "<b>Clowns" not in page
    assert "AutoModelForSeq2SeqLM" in page

    model = AutoModelForSeq2SeqLM.from_pretrained(made.fused)
    tokenizer = AutoTokenizer.from_pretrained(made.fused)
    assert (made.fused / "generation_config.json").is_file()
    inputs = tokenizer(example["prompt"], return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=24)[0]
    text = tokenizer.decode(said, skip_special_tokens=True).strip()
    assert text == example["texts"][results["chosen"]]

    context = Context(parse(recipe(data)), made, Display(quiet=True))
    evaluator = open_members(context).evaluator("validation")
    ensemble = mixture_of(evaluator, 4)
    assert isinstance(ensemble, TokenEnsemble)
    own = [evaluator(FusionWeights.one_hot(i, 4)).values["loss"] for i in range(4)]
    np.testing.assert_allclose(ensemble.predict(np.eye(4))["loss"], own, rtol=1e-5)
    mixtures = np.random.default_rng(0).dirichlet(np.ones(4), size=10)
    fused = [evaluator(FusionWeights.normalised(w.tolist())).values["loss"] for w in mixtures]
    rho = spearmanr(ensemble.predict(mixtures)["loss"], fused).statistic
    assert rho > 0.7

    # The same members, made to stop too soon: what never ended is counted in the report.
    again = [f"train={{checkpoints: {made.path}/members/*, members: 4}}",
             "task.options.generation.max_new_tokens=3", "fuse.evaluations=6",
             "fuse.methods=[swa, mobo]"]  # fmt: skip
    short = run(parse(recipe(data), again), tmp_path / "short")
    notes = json.loads(short.results.read_text())["notes"]
    (note,) = [note for note in notes if note.startswith("Of 24 test texts")]
    assert "the limit of 3 new tokens: " in note
    assert "swa 24" in note
    assert note in short.report.read_text(encoding="utf-8")


@pytest.mark.usefixtures("configuration")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.prompt='{{ meaning }}'", "'meaning', but the train split has mr, ref"),
        ("task.reference=reference", r"task\.reference names 'reference'"),
        ("task.options.chat=true", "needs a chat template"),
        ("task.metrics=[rouge_l]", "Did you mean rougeL"),
        ("task.metrics=[accuracy]", "needs a regular expression"),
        ("task.options.generation={max_tokens: 9}", "did you mean max_new_tokens"),
        ("model.max_length=8", "240 of 240 prompts have more than the 8 tokens"),
    ],
)
def test_mistakes_are_found_before_any_training(
    override: str, message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(FusetuneError, match=message):
        run(parse(recipe(data), ["task.options.too_long=refuse", override]), tmp_path / "run")
    assert not (tmp_path / "run/members").exists()
