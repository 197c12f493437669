import math

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial
from sklearn.metrics import f1_score as f1
from sklearn.metrics import matthews_corrcoef as matthews

from fusetune.evaluation.ensemble import Ensemble
from fusetune.evaluation.interpolation import Interpolation
from fusetune.executors.serial import SerialExecutor
from fusetune.objective import LOSS, Objective, to_maximise
from fusetune.optimization import fusion, hyperparameters, pareto, simplex
from fusetune.optimization.fusion import Settings
from fusetune.optimization.greedy import GreedySoup
from fusetune.optimization.hyperparameter_sampler import HyperparameterSampler
from fusetune.optimization.prior import Prior, Ranking
from fusetune.optimization.samplers import (
    SUGGEST_SECONDS,
    FusionSampler,
    ask_weights,
    weights_of,
)
from fusetune.optimization.study import Finished, Loop, open_storage

F1 = Objective("f1", "maximize")
QUICK = Settings(candidates=192, rounds=4, moves=48)

# --- w ---------------------------------------------------------------------------------

K = 6
A, B = simplex.dirichlet(2, K, 0.7, np.random.default_rng(3))


def losses(w):
    """Two smooth objectives in conflict, with some ruggedness in the metric."""
    return {
        "loss": float(((w - A) ** 2).sum()),
        "f1": float(1.0 - ((w - B) ** 2).sum() + 0.01 * np.sin(40.0 * w).sum()),
    }


def evaluate_weights(weights, number, report):
    return Finished(losses(np.array(weights.values)))


def fuse(loop, seed=0, trials=20, evaluate=evaluate_weights):
    return loop.run(
        "fuse",
        FusionSampler(K, [LOSS, F1], seed=seed, settings=QUICK, budget=trials),
        lambda trial: ask_weights(trial, K),
        evaluate,
        trials=trials,
        objectives=[LOSS, F1],
    )


def origins(study):
    return [t.user_attrs["origin"] for t in study.trials]


def test_members_first_then_their_average_then_scouts_and_the_greedy_soup_at_the_end():
    study = fuse(Loop.in_memory(), trials=24)
    W = np.array([weights_of(t).values for t in study.trials])
    np.testing.assert_array_equal(W[:K], np.eye(K))
    assert (W[K] == 1 / K).all()
    found = origins(study)
    assert found[K + 1 : K + 6] == ["sobol"] * 5
    assert (W[K + 1 : K + 6].max(axis=1) < 0.6).all()
    first = found.index("greedy")
    assert first == 24 - 2 * (K - 1), "as late as two steps each would allow"
    assert set(found[K + 6 : first]) == {"model"}
    assert found[first : first + 4] == ["greedy", "model", "greedy", "model"]

    f1 = {simplex.subset_of(w): losses(w)["f1"] for w in W if simplex.subset_of(w)}
    soup = GreedySoup([f1[frozenset({i})] for i in range(K)])
    assert soup.next_candidate(f1) is None  # every step of it has been evaluated
    assert max(t.values[1] for t in study.trials) >= f1[soup.result(f1)]

    for i in range(1, len(W)):  # and no point twice
        assert simplex.distance_to_nearest(W[i : i + 1], W[:i])[0] > 1e-3


def test_better_than_random_search_on_every_seed():
    members = to_maximise([losses(w) for w in np.eye(K)], [LOSS, F1])
    reference, _ = pareto.reference_point(members)
    gains = []
    for seed in range(3):
        study = fuse(Loop.in_memory(), seed=seed, trials=20)
        ours = to_maximise([{"loss": t.values[0], "f1": t.values[1]} for t in study.trials],
                           [LOSS, F1])  # fmt: skip
        drawn = simplex.dirichlet(20 - K - 1, K, 1.0, np.random.default_rng(seed))
        drawn = np.vstack([np.eye(K), np.full(K, 1 / K), drawn])
        random = to_maximise([losses(w) for w in drawn], [LOSS, F1])
        gains.append(
            pareto.hypervolume(ours, reference) - pareto.hypervolume(random, reference)
        )
    assert min(gains) > 0, gains


def without_seconds(study):
    """All that two runs of one study have in common."""
    return [
        (t.params, t.values, {k: v for k, v in t.user_attrs.items() if k != SUGGEST_SECONDS})
        for t in study.trials
    ]


@pytest.fixture(scope="module")
def undisturbed_fusion():
    return without_seconds(fuse(Loop.in_memory(), trials=16))


@pytest.mark.parametrize("number", [3, K + 2, 14])
def test_fusion_resumed_is_as_if_undisturbed(tmp_path, number, undisturbed_fusion):
    def interrupted(weights, trial, report):
        if trial == number:
            raise KeyboardInterrupt
        return evaluate_weights(weights, trial, report)

    with pytest.raises(KeyboardInterrupt):
        fuse(Loop(open_storage(tmp_path / "j"), SerialExecutor()), 0, 16, interrupted)
    resumed = fuse(Loop(open_storage(tmp_path / "j"), SerialExecutor()), trials=16)
    assert without_seconds(resumed) == undisturbed_fusion


def test_failed_members_are_passed_over():
    def fails(weights, number, report):
        if weights.values[1] > 0.0:
            raise RuntimeError("member 1 is broken")
        return evaluate_weights(weights, number, report)

    study = fuse(Loop.in_memory(), evaluate=fails, trials=16)
    assert study.trials[1].state == TrialState.FAIL
    assert "model" in origins(study)
    greedy = [t for t in study.trials if t.user_attrs["origin"] == "greedy"]
    assert all(t.params["w1"] == 0.0 for t in greedy)


def test_a_surrogate_that_fails_gives_a_random_point_and_says_so(monkeypatch, caplog):
    def singular(*args, **kwargs):
        raise torch.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(fusion, "suggest", singular)
    trial = fuse(Loop.in_memory(), trials=20).trials[-1]
    assert trial.user_attrs["origin"] == "random"
    assert "not positive definite" in trial.user_attrs["fallback"]
    assert "trial 19: random point" in caplog.text
    assert math.fsum(weights_of(trial).values) == pytest.approx(1.0)


def test_trials_under_evaluation_are_taken_into_account():
    sampler = FusionSampler(3, [LOSS], seed=0, settings=QUICK, budget=7)
    floats = FloatDistribution(0.0, 1.0)

    def trial(w, value):
        state = TrialState.RUNNING if value is None else TrialState.COMPLETE
        params = {f"w{i}": float(v) for i, v in enumerate(w)}
        distributions = dict.fromkeys(params, floats)
        return create_trial(
            state=state, value=value, params=params, distributions=distributions
        )

    members = [trial(w, loss) for w, loss in zip(np.eye(3), (0.3, 0.2, 0.4), strict=True)]
    uniform = trial(np.full(3, 1 / 3), 0.25)
    asked = trial([0.5, 0.5, 0.0], None)  # what the greedy soup wants to know next
    assert sampler.propose(3, members).params == trial(np.full(3, 1 / 3), 0.0).params
    assert sampler.propose(4, [*members, uniform]).params == asked.params
    proposal = sampler.propose(5, [*members, uniform, asked])
    assert proposal.origin == "model"
    assert proposal.params != asked.params


# --- w, with a prior ---------------------------------------------------------------


def rough(w):
    """`losses`, with a metric that no smooth model can follow, 0.05 from its prior."""
    values = losses(w)
    return {**values, "f1": values["f1"] + 0.05 * np.sin(300.0 * w[0])}


def knowing(members):
    """A prior that is right but for a small smooth error and an offset."""
    assert members == tuple(range(K))

    def predict(points):
        rows = [rough(w) for w in points]
        return {
            "loss": np.array([r["loss"] for r in rows]) + 0.05 * points[:, 0],
            "f1": np.array([r["f1"] for r in rows]) - 0.1 * (points**2).sum(axis=1),
        }

    return Prior(predict, A[None])


def misleading(members):
    def predict(points):
        return {
            "loss": np.array([-losses(w)["loss"] for w in points]),
            "f1": np.zeros(len(points)),
        }

    return Prior(predict, np.empty((0, K)))


def fuse_with(prior, loop=None, trials=22, f=rough, interrupt=None):
    def evaluate(weights, number, report):
        if number == interrupt:
            raise KeyboardInterrupt
        return Finished(f(np.array(weights.values)))

    sampler = FusionSampler(K, [LOSS, F1], seed=0, settings=QUICK, prior=prior, budget=trials)
    loop = loop or Loop.in_memory()
    study = loop.run(
        "fuse",
        sampler,
        lambda trial: ask_weights(trial, K),
        evaluate,
        trials=trials,
        objectives=[LOSS, F1],
    )
    return study, sampler


def best(study):
    return max(t.values[1] for t in study.trials if t.state == TrialState.COMPLETE)


@pytest.mark.parametrize("trials", [2 * K + 1, 2 * K + 4, 22])
def test_a_prior_names_a_start_and_few_trials_do_for_the_greedy_soup(trials):
    study, sampler = fuse_with(knowing, trials=trials)
    found = origins(study)
    assert found[K + 1] == "prior"
    np.testing.assert_allclose(weights_of(study.trials[K + 1]).values, A, atol=1e-3)
    assert found.count("sobol") == min(5, max(0, trials - 2 * K - 1))
    W = np.array([weights_of(t).values for t in study.trials])
    f1 = {simplex.subset_of(w): rough(w)["f1"] for w in W if simplex.subset_of(w)}
    soup = GreedySoup([f1[frozenset({i})] for i in range(K)])
    assert soup.next_candidate(f1) is None  # all of its steps were taken all the same
    assert sampler.doubts(study.trials) == {}


def test_a_good_prior_finds_more():
    with_prior, _ = fuse_with(knowing)
    without, _ = fuse_with(None)
    members = to_maximise([rough(w) for w in np.eye(K)], [LOSS, F1])
    reference, _ = pareto.reference_point(members)
    volume = [
        pareto.hypervolume(np.array([[-t.values[0], t.values[1]] for t in s.trials]), reference)
        for s in (with_prior, without)
    ]
    assert volume[0] > 1.02 * volume[1], volume


def test_a_prior_that_does_not_predict_is_given_up():
    study, sampler = fuse_with(misleading)
    doubts = sampler.doubts(study.trials)
    assert set(doubts) == {"loss", "f1"}
    assert doubts["f1"].startswith("rank correlation 0.00 over ")
    W = np.array([weights_of(t).values for t in study.trials])
    Y = to_maximise([{"loss": t.values[0], "f1": t.values[1]} for t in study.trials],
                    [LOSS, F1])  # fmt: skip
    prior = sampler.prior(study.trials)
    scouts = W[[o == "sobol" for o in origins(study)]]
    ranked = prior.correlations(W, Y, [LOSS, F1], scouts)
    assert ranked[0].correlation < -0.5
    assert ranked[1].correlation == 0.0
    assert prior.mean(W, Y, [LOSS, F1], scouts) is None
    assert prior.mean(W[: K + 1], Y[: K + 1], [LOSS, F1], scouts) is not None  # too early


# 40 examples with two columns each, and a metric that is a staircase in w.
COLUMNS = np.random.default_rng(7).normal(size=(K, 40, 2))
BENT = 0.6 * np.random.default_rng(8).normal(size=(K, K, 40, 2))


def predicted(W):
    """The outputs of θ̄(w): the mixture, and what pairs of members do to each other."""
    W = np.atleast_2d(W)
    pairs = np.einsum("ni,nj,ijec->nec", W, W, BENT - np.einsum("iiec->iec", BENT)[:, None])
    return np.einsum("nk,kec->nec", W, COLUMNS) + pairs


def measured(Z):
    """Loss and metric of outputs, as if the first column should be the larger."""
    margin = Z[..., 0] - Z[..., 1]
    return {"loss": np.logaddexp(0.0, -margin).mean(-1), "f1": (margin > 0).mean(-1)}


class Bent:
    """A task of which only the outputs are scored."""

    objectives = (LOSS, F1)

    def score_many(self, predictions, labels):
        return measured(predictions.astype(np.float64))


def with_outputs(wrong=0.0, learn=True):
    """A prior by the mixture that learns from outputs, true ones or not."""
    ensemble = Ensemble(COLUMNS.astype(np.float32), np.zeros(40, int), Bent())

    def make(members):
        def learned(W):
            noise = np.random.default_rng(len(W)).normal(size=(len(W), 40, 2))
            return Interpolation(ensemble, W, (predicted(W) + wrong * noise).astype(np.float32))

        return Prior(ensemble.predict, np.empty((0, K)), learned if learn else None)

    return make


def staircase(w):
    return {name: float(v[0]) for name, v in measured(predicted(w)).items()}


def volume_of(study):
    members = to_maximise([staircase(w) for w in np.eye(K)], [LOSS, F1])
    reference, _ = pareto.reference_point(members)
    found = np.array([[-t.values[0], t.values[1]] for t in study.trials])
    return pareto.hypervolume(found, reference)


def test_what_outputs_teach_finds_more_in_half_the_trials():
    taught, sampler = fuse_with(with_outputs(), f=staircase, trials=24)
    assert "sobol" not in origins(taught)
    assert sampler.doubts(taught.trials) == {}
    half, _ = fuse_with(with_outputs(), f=staircase, trials=14)
    mixture, _ = fuse_with(with_outputs(learn=False), f=staircase, trials=24)
    assert volume_of(half) > volume_of(mixture)
    assert volume_of(taught) > 1.05 * volume_of(mixture)


def test_outputs_that_teach_nothing_are_given_up():
    study, sampler = fuse_with(with_outputs(wrong=3.0), f=staircase, trials=24)
    doubts = sampler.doubts(study.trials)
    assert "loss" in doubts, doubts
    assert "a process on its values alone predicts" in doubts["loss"]


def test_outputs_of_which_no_model_can_be_made_end_in_random_points_not_in_an_error():
    def make(members):
        def learned(W):
            raise np.linalg.LinAlgError("Singular matrix")

        prior = with_outputs(learn=False)(members)
        return Prior(prior.predict, prior.starts, learned)

    study, sampler = fuse_with(make, f=staircase, trials=2 * K + 4)
    assert "random" in origins(study)
    assert any("Singular" in t.user_attrs.get("fallback", "") for t in study.trials)
    assert sampler.doubts(study.trials) == {}


def test_a_search_that_learns_from_outputs_goes_on_alike_after_an_interruption(tmp_path):
    whole, _ = fuse_with(with_outputs(), f=staircase)
    loop = Loop(open_storage(tmp_path / "trials.journal"), SerialExecutor())
    with pytest.raises(KeyboardInterrupt):
        fuse_with(with_outputs(), loop=loop, f=staircase, interrupt=K + 6)
    again, _ = fuse_with(with_outputs(), loop=loop, f=staircase)
    assert [t.params for t in again.trials] == [t.params for t in whole.trials]


def test_few_points_do_not_give_up_a_prior_that_many_would():
    assert Ranking(0.0, 6).trusted is False
    assert Ranking(0.05, 6).trusted
    assert not Ranking(-0.3, 6).trusted
    assert not Ranking(0.05, 60).trusted
    assert Ranking(0.2, 60).trusted


def test_a_prior_waits_for_all_members_and_leaves_out_those_that_failed():
    asked = []

    def make(members):
        asked.append(members)
        return Prior(lambda points: {"loss": points[:, 0]}, np.empty((0, K)))

    def broken(w):
        return {**losses(w), "f1": math.nan} if w[2] > 0.0 else losses(w)

    study, _ = fuse_with(make, f=broken)
    assert asked == [(0, 1, 3, 4, 5)]
    assert study.trials[2].state == TrialState.FAIL
    assert study.trials[2].user_attrs["reason"] == "f1 is nan"
    failed = [t.number for t in study.trials if t.state == TrialState.FAIL]
    assert failed == [2, K]  # the member and the uniform average, nothing after them
    assert "model" in origins(study)
    assert best(study) > max(losses(w)["f1"] for w in np.eye(K)[[0, 1, 3, 4, 5]])


@pytest.mark.parametrize("number", [K + 1, K + 4, 18])
def test_fusion_with_a_prior_resumed_is_as_if_undisturbed(tmp_path, number):
    def loop():
        return Loop(open_storage(tmp_path / "j"), SerialExecutor())

    with pytest.raises(KeyboardInterrupt):
        fuse_with(knowing, loop(), trials=20, interrupt=number)
    resumed, _ = fuse_with(knowing, loop(), trials=20)
    undisturbed, _ = fuse_with(knowing, trials=20)
    assert without_seconds(resumed) == without_seconds(undisturbed)


@pytest.mark.parametrize(
    ("task", "metric", "before"), [("cola", matthews, 0.0567), ("mrpc", f1, 0.0439)]
)
def test_as_much_hypervolume_on_recorded_landscapes_as_before(shared, task, metric, before):
    """`before`: after 45 trials with sampled qLogNEHVI, mean of 3 seeds."""
    with np.load(shared / f"data/landscapes/{task}.npz") as saved:
        logits, labels = saved["validation_logits"], saved["validation_labels"]
    margins = logits[..., 1].astype(float) - logits[..., 0]

    def values(w):
        m = w @ margins
        loss = np.logaddexp(0.0, np.where(labels == 1, -m, m)).mean()
        return {"loss": float(loss), "f1": float(metric(labels, m > 0))}

    k = len(margins)
    reference, _ = pareto.reference_point(
        to_maximise([values(w) for w in np.eye(k)], [LOSS, F1])
    )
    found = []
    for seed in range(2):
        study = Loop.in_memory().run(
            "fuse",
            FusionSampler(k, [LOSS, F1], seed=seed),
            lambda trial: ask_weights(trial, k),
            lambda weights, number, report: Finished(values(np.array(weights.values))),
            trials=45,
            objectives=[LOSS, F1],
        )
        Y = np.array([[-t.values[0], t.values[1]] for t in study.trials])
        found.append(pareto.hypervolume(Y, reference))
    assert np.mean(found) > 0.95 * before, found


# --- λ ---------------------------------------------------------------------------------

SPACE = {
    "learning_rate": FloatDistribution(1e-6, 1e-3, log=True),
    "weight_decay": FloatDistribution(0.0, 0.1),
    "batch": CategoricalDistribution([8, 16, 32]),
    "layers": IntDistribution(1, 6),
}
ACCURACY = Objective("accuracy", "maximize")


def define(trial):
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-3, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 0.0, 0.1),
        "batch": trial.suggest_categorical("batch", [8, 16, 32]),
        "layers": trial.suggest_int("layers", 1, 6),
    }


def accuracy(params):
    return (
        1.0
        - 0.15 * (math.log10(params["learning_rate"]) + 4.3) ** 2
        - 20.0 * (params["weight_decay"] - 0.03) ** 2
        - {8: 0.1, 16: 0.0, 32: 0.05}[params["batch"]]
        - 0.02 * (params["layers"] - 4) ** 2
    )


def evaluate_params(params, number, report):
    return Finished({"accuracy": accuracy(params)})


def search(loop, sampler, trials=11, evaluate=evaluate_params):
    return loop.run("search", sampler, define, evaluate, trials=trials, objectives=[ACCURACY])


@pytest.mark.parametrize("acquisition", ["logei", "ucb"])
def test_hyperparameter_search_is_better_than_random_search(acquisition):
    ours, random = [], []
    for seed in range(3):
        sampler = HyperparameterSampler(
            SPACE, ACCURACY, seed=seed, starts=4, acquisition=acquisition
        )
        ours.append(search(Loop.in_memory(), sampler).best_value)
        # The mean of the best of 11 draws, over many repeats, is what random search gives.
        rng = np.random.default_rng(seed)
        for _ in range(100):
            draws = [
                {
                    "learning_rate": 10 ** rng.uniform(-6, -3),
                    "weight_decay": rng.uniform(0, 0.1),
                    "batch": int(rng.choice([8, 16, 32])),
                    "layers": int(rng.integers(1, 7)),
                }
                for _ in range(11)
            ]
            random.append(max(map(accuracy, draws)))
    assert np.mean(ours) > np.mean(random), (ours, np.mean(random))


def test_starts_follow_the_sobol_sequence_and_cover_the_space():
    sampler = HyperparameterSampler(SPACE, ACCURACY, seed=0, starts=8)
    study = search(Loop.in_memory(), sampler, trials=8)
    assert [t.user_attrs["origin"] for t in study.trials] == ["sobol"] * 8
    logs = [math.log10(t.params["learning_rate"]) for t in study.trials]
    # A scrambled Sobol sequence puts one of its first 8 points into each eighth.
    assert sorted(int((x + 6) / 3 * 8) for x in logs) == list(range(8))


def test_search_resumed_is_as_if_undisturbed(tmp_path):
    def interrupted(params, number, report):
        if number in (2, 5):
            raise KeyboardInterrupt
        return evaluate_params(params, number, report)

    def sampler():
        return HyperparameterSampler(SPACE, ACCURACY, seed=1, starts=4)

    expected = without_seconds(search(Loop.in_memory(), sampler(), trials=7))
    with pytest.raises(KeyboardInterrupt):
        search(Loop(open_storage(tmp_path / "j"), SerialExecutor()), sampler(), 7, interrupted)
    resumed = search(Loop(open_storage(tmp_path / "j"), SerialExecutor()), sampler(), trials=7)
    assert without_seconds(resumed) == expected


def test_failed_trials_count_as_the_worst_and_pruned_ones_with_their_best_step():
    sampler = HyperparameterSampler({"x": FloatDistribution(0, 1)}, LOSS, seed=0)
    seen = {}

    def spy(cube, X, y, **options):
        seen.update(zip(X[:, 0], y, strict=True))
        return np.array([0.5])

    def trial(x, state, **more):
        return create_trial(state=state, params={"x": x}, distributions=sampler.space, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hyperparameters, "suggest", spy)
        sampler.propose(5, [
            trial(0.1, TrialState.COMPLETE, value=0.4),
            trial(0.2, TrialState.COMPLETE, value=0.9),
            trial(0.3, TrialState.FAIL),
            trial(0.4, TrialState.PRUNED, intermediate_values={0: 0.8, 1: 0.5, 2: 0.6}),
        ])  # fmt: skip
    assert seen == {0.1: -0.4, 0.2: -0.9, 0.3: -0.9, 0.4: -0.5}


def test_no_duplicate_until_a_discrete_space_is_exhausted():
    space = {"a": CategoricalDistribution(["x", "y"]), "b": IntDistribution(1, 3)}
    study = Loop.in_memory().run(
        "search",
        HyperparameterSampler(space, LOSS, seed=0, starts=2),
        lambda t: (t.suggest_categorical("a", ["x", "y"]), t.suggest_int("b", 1, 3)),
        lambda params, number, report: Finished({"loss": params[1] + (params[0] == "x")}),
        trials=8,
        objectives=[LOSS],
    )
    tried = [tuple(t.params.values()) for t in study.trials]
    assert len(set(tried[:6])) == 6
    assert len(tried) == 8


def test_a_parameter_outside_of_the_space_is_a_mistake_of_the_caller():
    sampler = HyperparameterSampler({"x": FloatDistribution(0, 1)}, LOSS, seed=0)
    study = optuna.create_study(sampler=sampler)
    with pytest.raises(ValueError, match=r"dropout.*is not in the sampler's space"):
        study.ask().suggest_float("dropout", 0.0, 0.5)


def test_a_space_of_single_values_needs_no_sampler():
    space = {"epochs": IntDistribution(3, 3)}
    study = Loop.in_memory().run(
        "search",
        HyperparameterSampler(space, LOSS, seed=0),
        lambda t: t.suggest_int("epochs", 3, 3),
        lambda epochs, number, report: Finished({"loss": float(epochs)}),
        trials=2,
        objectives=[LOSS],
    )
    assert [t.params for t in study.trials] == [{"epochs": 3}] * 2
