from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from fusetune.errors import RecipeError
from fusetune.tasks import squad, text_metrics
from fusetune.tasks.generated import FIRST, Columns
from fusetune.tasks.task import Outputs

WORDS = ("the", "cat", "sat", "on", "a", "mat", "dogs", "ran!", "it's", "42")
texts = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
golds = st.lists(texts.filter(bool), min_size=1, max_size=3)
corpora = st.lists(st.tuples(texts, golds), min_size=1, max_size=6)


def value(name: str, said: list[str], refs: list[list[str]], **options: object) -> float:
    metric = text_metrics.find(name, **options)  # type: ignore[arg-type]
    columns = metric.measure(said, refs)
    assert columns.shape == (len(said), metric.columns)
    return float(metric.value(columns.sum(axis=0)[None], np.array([float(len(said))]))[0])


def streams(refs: list[list[str]]) -> list[list[str | None]]:
    """Sacrebleu's shape: the first reference of each text, the second, … or None."""
    most = max(map(len, refs))
    return [[r[i] if i < len(r) else None for r in refs] for i in range(most)]


@settings(max_examples=60)
@given(corpora)
def test_bleu_and_chrf_of_a_corpus_are_those_of_sacrebleu(
    corpus: list[tuple[str, list[str]]],
) -> None:
    said, refs = [c[0] for c in corpus], [c[1] for c in corpus]
    bleu = sacrebleu.BLEU().corpus_score(said, streams(refs)).score  # type: ignore[arg-type]
    chrf = sacrebleu.CHRF().corpus_score(said, streams(refs)).score  # type: ignore[arg-type]
    assert value("bleu", said, refs) == pytest.approx(bleu, abs=1e-9)
    assert value("chrf", said, refs) == pytest.approx(chrf, abs=1e-9)


def test_bleu_of_sacrebleus_own_example() -> None:
    refs = [
        ["The dog bit the man.", "It was not unexpected.", "The man bit him first."],
        ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."],
    ]
    said = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    each = [list(pair) for pair in zip(*refs, strict=True)]
    assert value("bleu", said, each) == pytest.approx(48.530827, abs=1e-5)


def test_bleu_is_not_a_mean_of_sentences() -> None:
    said, refs = ["the cat sat on a mat", "dogs"], [["the cat sat on a mat"], ["dogs ran"]]
    alone = [value("bleu", [s], [r]) for s, r in zip(said, refs, strict=True)]
    assert value("bleu", said, refs) > np.mean(alone) + 20


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_is_the_packages_mean_over_the_nearest_reference(name: str) -> None:
    said = ["The quick brown fox jumps over the lazy dog", "cats\nran home", ""]
    refs = [["The quick brown dog jumps on the log.", "a fox"], ["home ran\ncats"], ["x"]]
    scorer = rouge_scorer.RougeScorer([name])
    wanted = [scorer.score_multi(r, s)[name].fmeasure for s, r in zip(said, refs, strict=True)]
    assert value(name, said, refs) == pytest.approx(np.mean(wanted))
    assert value("rouge1", ["running"], [["runs"]], stemmer=True) == 1.0


def official(gold_texts: list[str], said: str) -> tuple[int, float]:
    """`compute_exact` and `compute_f1` of evaluate-v2.0.py, written out again."""
    import collections
    import re
    import string

    def normalize(s: str) -> str:
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())

    def f1(gold: str, pred: str) -> float:
        g, p = normalize(gold).split(), normalize(pred).split()
        same = sum((collections.Counter(g) & collections.Counter(p)).values())
        if len(g) == 0 or len(p) == 0:
            return int(g == p)
        if same == 0:
            return 0
        precision, recall = same / len(p), same / len(g)
        return (2 * precision * recall) / (precision + recall)

    gold_answers = [a for a in gold_texts if normalize(a)] or [""]
    exact = max(int(normalize(a) == normalize(said)) for a in gold_answers)
    return exact, max(f1(a, said) for a in gold_answers)


@given(texts, st.lists(texts, max_size=3))
def test_exact_match_and_f1_follow_the_squad_script(said: str, refs: list[str]) -> None:
    exact, f1 = official(refs, said)
    assert squad.exact_match(said, refs) == exact
    assert squad.f1(said, refs) == pytest.approx(f1)


def test_squad_rules_by_hand() -> None:
    assert squad.exact_match("The  Normans!", ["normans"]) == 1.0
    assert squad.exact_match("", ()) == squad.f1("", ()) == 1.0  # rightly no answer
    assert squad.exact_match("1066", ()) == squad.f1("1066", ()) == 0.0
    assert squad.f1("", ["Normandy"]) == 0.0
    assert squad.f1("in northern France", ["France", "the north of France"]) == 0.5


def test_squad_rules_on_the_metric_cards_own_examples() -> None:
    """Of the squad_v2 metric of Hugging Face's evaluate, which wraps the published script."""
    refs = [["1976"], ["Beyoncé and Bruno Mars"], ["climate change"]]
    said = ["1976", "Beyonce", "climate change"]
    for name in ("exact_match", "f1"):
        assert value(name, said[:1], refs[:1]) == 1.0
        assert value(name, ["1999"], refs[:1]) == 0.0
        assert value(name, said, refs) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "reference", "text", "wanted"),
    [
        ("rouge1", "testing one two", "testing", 1 / 2),
        ("rouge1", "testing one two", "testing one", 4 / 5),
        ("rouge2", "testing one two", "testing one", 2 / 3),
        ("rougeL", "testing one two", "testing two", 4 / 5),
        ("rougeLsum", "w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", 8 / 15),
        ("rouge1", "The quick brown fox jumps over the lazy dog",
         "The quick brown dog jumps on the log.", 12 / 17),
        ("rougeL", "The quick brown fox jumps over the lazy dog",
         "The quick brown dog jumps on the log.", 10 / 17),
    ],
)  # fmt: skip
def test_rouge_of_the_packages_own_examples(
    name: str, reference: str, text: str, wanted: float
) -> None:
    """Of its tests and its page."""
    assert value(name, [text], [[reference]]) == pytest.approx(wanted)


def test_accuracy_compares_what_the_pattern_finds() -> None:
    said, refs = ["so it is #### 42", "A", "#### 7"], [["because #### 42"], ["#### 1"], ["7"]]
    assert value("accuracy", said, refs, pattern=r"#### (\d+)") == pytest.approx(2 / 3)
    with pytest.raises(RecipeError, match="needs a regular expression"):
        text_metrics.find("accuracy")
    with pytest.raises(RecipeError, match="is no regular expression"):
        text_metrics.find("accuracy", pattern="(")


@settings(max_examples=15)
@given(corpora, st.integers(0, 2**16))
def test_resampled_metrics_are_those_of_the_repeated_texts(
    corpus: list[tuple[str, list[str]]], seed: int
) -> None:
    names = ["bleu", "chrf", "f1", "rougeL"]
    columns = Columns(tuple(map(text_metrics.find, names)))
    said, refs = [c[0] for c in corpus], [c[1] for c in corpus]
    n = len(said)
    loss, tokens = np.arange(1.0, n + 1), np.arange(2, n + 2)
    found = columns.of(loss, tokens, [False] * n, said, refs)
    outputs = Outputs(loss.astype(np.float32), found, tuple(said))
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=3)
    labels = np.zeros(n)
    sampled = columns.resample(outputs, labels, counts)
    for b, sample in enumerate(counts):
        rows = np.repeat(np.arange(n), sample)
        for name in names:
            wanted = value(name, [said[i] for i in rows], [refs[i] for i in rows])
            assert sampled[name][b] == pytest.approx(wanted, rel=1e-5, abs=1e-5)
        assert sampled["loss"][b] == pytest.approx(loss[rows].sum() / tokens[rows].sum())
    many = columns.many(np.stack([found, found]))
    once = columns.resample(outputs, labels, np.ones((1, n)))
    assert all(many[name] == pytest.approx([once[name][0]] * 2) for name in many)


def test_a_users_function_per_text_or_over_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_measures.py").write_text(
        "def length(said, refs): return [len(s) for s in said]\n"
        "def longest(said, refs): return max(map(len, said)) + 10 * len(refs[0])\n"
        "def wrong(said, refs): return 'good'\n"
    )
    monkeypatch.chdir(tmp_path)
    metrics = tuple(text_metrics.find(f"own_measures:{n}") for n in ("length", "longest"))
    columns = Columns(metrics)
    said, refs = ("a", "bbb", "cc"), [("x",), ("y",), ("z",)]
    found = columns.of(np.ones(3), np.ones(3), [False] * 3, said, refs)
    assert np.isnan(found[:, FIRST + 1]).all()
    labels = np.empty(3, dtype=object)
    labels[:] = refs
    counts = np.array([[1, 1, 1], [3, 0, 0]] * 60)
    values = columns.resample(Outputs(np.ones(3, np.float32), found, said), labels, counts)
    assert values["length"][:2].tolist() == [2.0, 1.0]
    assert values["longest"].tolist() == [13.0, 11.0] * 60
    with pytest.raises(RecipeError, match="one number, or one per text; got a str"):
        text_metrics.find("own_measures:wrong").measure(said, refs)
    with pytest.raises(RecipeError, match="cannot be imported"):
        text_metrics.find("own_measures:missing")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(RecipeError, match=r"pip install 'fusetune\[generation\]'"):
        text_metrics.find("bleu")
    with pytest.raises(RecipeError, match="Did you mean rouge1"):
        text_metrics.find("rouge_1")
