from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusetune.errors import DataError, RecipeError, StageError
from fusetune.evaluation.bootstrap import bootstrap_counts
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.scorer import Scorer
from fusetune.tasks.harness_metrics import Measure, is_public
from fusetune.tasks.lm_eval import LmEval
from fusetune.tasks.splitting import Splitting

NO_TRAINING = Splitting(trains=False, seed=3)
METRICS = [
    "lm_eval:colours/acc",
    "lm_eval:colours/acc_norm",
    "lm_eval:echo/exact_match",
    "lm_eval:prose/word_perplexity",
]
WORDS = ["red", "green", "blue", "of", "the", "sky", "grass", "is", "what", "colour", ".", "a"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three small tasks, one of each way of asking."""
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    folder = tmp_path_factory.mktemp("tasks")
    draw = random.Random(0)
    rows = {
        "colours": [
            {
                "question": f"what colour is {' '.join(draw.choices(WORDS, k=3))} {i}",
                "choices": ["red", "green grass", "blue sky is"],
                "gold": draw.randrange(3),
            }
            for i in range(30)
        ],
        "echo": [
            {"ask": f"{draw.choice(WORDS)} {i}", "say": draw.choice(WORDS)} for i in range(9)
        ],
        "prose": [{"text": " ".join(draw.choices(WORDS, k=6))} for _ in range(8)],
    }
    settings: dict[str, dict[str, Any]] = {
        "colours": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "num_fewshot": 1,
            "metric_list": [_mean("acc"), _mean("acc_norm")],
        },
        "echo": {
            "output_type": "generate_until",
            "doc_to_text": "{{ask}}",
            "doc_to_target": "{{say}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 1, "do_sample": False},
            "metric_list": [_mean("exact_match")],
        },
        "prose": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [
                {
                    "metric": "word_perplexity",
                    "aggregation": "weighted_perplexity",
                    "higher_is_better": False,
                }
            ],
        },
    }
    for name, own in settings.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        data = {"data_files": {"validation": str(file)}, "cache_dir": str(folder / "cache")}
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": data,
            "validation_split": "validation",
            **own,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>", *WORDS, *map(str, range(30))]
    made = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="</s>",
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    found = LlamaForCausalLM(config)
    with torch.no_grad():  # far from uniform, so that options differ
        found.lm_head.weight.mul_(40)
    return found.eval()


def evaluated(task: LmEval, tokenizer: Any, model: Any, split: Any) -> Evaluation:
    encoded = task.encode(split, tokenizer, None)
    return Scorer(task, encoded, task.collate(tokenizer), torch.device("cpu"))(model)  # type: ignore[arg-type]


def test_it_measures_what_the_harness_measures(tasks: Path, tokenizer: Any, model: Any) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    task = LmEval("mine", str(tasks), metrics=METRICS, splitting=NO_TRAINING)
    assert [o.name for o in task.objectives] == [
        "loss",
        "colours/acc",
        "colours/acc_norm",
        "echo/exact_match",
        "prose/word_perplexity",
    ]
    assert [o.direction for o in task.objectives[3:]] == ["maximize", "minimize"]
    parts = [evaluated(task, tokenizer, model, split) for split in ("validation", "test")]
    both = np.concatenate([part.outputs.predictions for part in parts if part.outputs])
    ours = {name: float(v[0]) for name, v in task.score_many(both[None], np.empty(0)).items()}

    names = ["colours", "echo", "prose"]
    loaded = TaskManager(include_path=str(tasks), include_defaults=False).load(names)
    for own in loaded["tasks"].values():
        own.set_fewshot_seed(1234)  # as `lm-eval run` does
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    theirs = evaluate(lm, loaded, bootstrap_iters=0)["results"]
    for name in names[:2]:
        for key, value in theirs[name].items():
            metric = key.removesuffix(",none")
            if f"{name}/{metric}" in ours:
                assert ours[f"{name}/{metric}"] == pytest.approx(value, abs=1e-6)
    assert 0 < ours["colours/acc"] < 1
    perplexity = theirs["prose"]["word_perplexity,none"]
    assert ours["prose/word_perplexity"] == pytest.approx(perplexity, rel=1e-4)


def test_no_document_is_on_both_sides(tasks: Path) -> None:
    task = LmEval("mine", str(tasks), metrics=METRICS[:1], splitting=NO_TRAINING)
    validation, test = (task.splits[name] for name in ("validation", "test"))
    assert len(validation) == len(test) == 15
    assert not set(validation.texts) & set(test.texts)
    again = LmEval("mine", str(tasks), metrics=METRICS[:1], splitting=NO_TRAINING)
    assert again.splits["validation"].fingerprint == validation.fingerprint
    other = Splitting(trains=False, seed=4)
    moved = LmEval("mine", str(tasks), metrics=METRICS[:1], splitting=other)
    assert moved.splits["validation"].fingerprint != validation.fingerprint
    few = LmEval("mine", str(tasks), metrics=METRICS[:1], splitting=NO_TRAINING, limit=4)
    assert [len(split) for split in few.splits.values()] == [4, 4]
    assert set(few.splits["validation"].texts) <= set(validation.texts)


def test_test_documents_only_report(tasks: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((tasks / "colours.yaml").read_text())
    config["dataset_kwargs"]["data_files"]["test"] = str(tasks / "echo.jsonl")
    rows = [json.loads(line) for line in (tasks / "colours.jsonl").read_text().splitlines()]
    held = [{**row, "question": f"the {row['question']}"} for row in rows[:5]]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    config["dataset_kwargs"]["data_files"]["test"] = str(tmp_path / "test.jsonl")
    (tmp_path / "own.yaml").write_text(
        yaml.safe_dump({**config, "task": "own", "test_split": "test"})
    )
    task = LmEval("mine", str(tmp_path), metrics=["lm_eval:own/acc"], splitting=NO_TRAINING)
    assert [len(task.splits[name]) for name in ("validation", "test")] == [30, 5]


def test_intervals_and_the_loss(tasks: Path, tokenizer: Any, model: Any) -> None:
    task = LmEval("mine", str(tasks), metrics=METRICS[:2], splitting=NO_TRAINING)
    found = evaluated(task, tokenizer, model, "validation")
    assert found.outputs is not None
    labels = task.splits["validation"].labels
    counts = bootstrap_counts(15, 200, seed=0)
    drawn = task.resample(found.outputs, labels, counts)
    low, high = np.quantile(drawn["colours/acc"], [0.025, 0.975])
    assert low < found.values["colours/acc"] < high
    # The loss of a document: the log-likelihood of its right option, by hand.
    prompt, target = task._documents["validation"][0].requests[0].arguments[0], labels[0][0]
    ids = tokenizer(prompt + target, return_tensors="pt")["input_ids"]
    n = len(tokenizer(target)["input_ids"])
    with torch.no_grad():
        logp = model(ids).logits[0, :-1].log_softmax(-1)
    by_hand = -logp.gather(1, ids[0, 1:, None])[-n:].sum().item()
    assert found.outputs.loss[0] == pytest.approx(by_hand, rel=1e-4)
    assert found.values["loss"] == pytest.approx(found.outputs.loss.mean(), rel=1e-5)


def test_the_precision_is_the_scorers(tasks: Path, tokenizer: Any, model: Any) -> None:
    task = LmEval("mine", str(tasks), metrics=METRICS[:1], splitting=NO_TRAINING, limit=3)
    parts = (task, task.encode("test", tokenizer, None), task.collate(tokenizer))
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        scorer = Scorer(*parts, torch.device("cpu"), dtype)  # type: ignore[arg-type]
        losses.append(scorer(model).values["loss"])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_what_cannot_be_used_is_said(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager

    def local(include_path: str, include_defaults: bool) -> Any:  # thousands of files less
        return manager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", local)

    def make(*metrics: str, **more: Any) -> Any:
        return LmEval(
            "mine", str(tasks), metrics=metrics, splitting=NO_TRAINING, **more
        ).objectives

    with pytest.raises(RecipeError, match=r"no task 'colour', .*Near: colours"):
        make("lm_eval:colour/acc")
    with pytest.raises(RecipeError, match="has no metric f1; it has acc, acc_norm"):
        make("lm_eval:colours/f1")
    with pytest.raises(RecipeError, match="has no filter strict; it has none"):
        make("lm_eval:colours/acc/strict")
    with pytest.raises(RecipeError, match="lm_eval:TASK/METRIC; got 'accuracy'"):
        make("accuracy")
    with pytest.raises(RecipeError, match="limit is a whole number above 0; got 0"):
        make(METRICS[0], limit=0)
    with pytest.raises(RecipeError, match="trains none"):
        LmEval("mine", str(tasks), metrics=METRICS, splitting=Splitting())
    with pytest.raises(RecipeError, match="folder with YAML files"):
        LmEval("mine", str(tmp_path / "none"), metrics=METRICS, splitting=NO_TRAINING)
    gone = yaml.safe_load((tasks / "echo.yaml").read_text())
    gone["dataset_kwargs"]["data_files"]["validation"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "gone.yaml").write_text(yaml.safe_dump({**gone, "task": "gone"}))
    with pytest.raises(DataError, match="task gone cannot be loaded"):
        _ = LmEval(
            "mine", str(tmp_path), metrics=["gone/exact_match"], splitting=NO_TRAINING
        ).splits
    with pytest.raises(StageError, match="no loss that a method can follow"):
        LmEval("mine", str(tasks), metrics=METRICS, splitting=NO_TRAINING).loss(
            torch.nn.Linear(1, 1), {}
        )


def test_public_benchmarks_are_warned_about() -> None:
    for name in ("arc_easy", "arc_challenge", "mmlu_anatomy", "hellaswag", "gsm8k", "ai2_arc"):
        assert is_public(name)
    assert not is_public("colours")
    assert Measure.parse("lm_eval:gsm8k/exact_match/strict-match").filter == "strict-match"


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    task = LmEval("mine", str(tmp_path), metrics=["arc_easy/acc"], splitting=NO_TRAINING)
    with pytest.raises(RecipeError, match=r"pip install 'fusetune\[lm-eval\]'"):
        _ = task.splits
