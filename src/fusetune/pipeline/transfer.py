"""A few λ trained in the light and in the full variant: does the light one rank them well?

And for the full trajectories: does a better best member mean a better fused model?
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fusetune.errors import RecipeError
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.disk import full_disk_is_an_error, write_json, write_text
from fusetune.members.weights import FusionWeights
from fusetune.objective import LOSS, Objective
from fusetune.optimization.hyperparameter_sampler import HyperparameterSampler
from fusetune.optimization.study import Loop
from fusetune.optimization.telling import REASON
from fusetune.pipeline.agreement import FILE, subject
from fusetune.pipeline.checks import check
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Bar, Display, log_to
from fusetune.pipeline.environment import (
    package_version,
    require_same_data,
    write_environment,
)
from fusetune.pipeline.space import distributions
from fusetune.pipeline.trial import TrialEvaluation, parameters
from fusetune.recipe import Recipe
from fusetune.recipe_stages import FuseSection, SearchSection
from fusetune.report.agreement import Trained, agreement, misleads, sentence, to_json
from fusetune.report.page import write
from fusetune.report.transfer import page
from fusetune.report.wording import passes
from fusetune.run import RunFolder

TRIALS = 8
LIGHT, FULL = "transfer-light", "transfer-full"
BEST_OF_MEMBERS = "best_of_members"


def transfer(
    recipe: Recipe,
    out: str | Path,
    *,
    trials: int = TRIALS,
    force: bool = False,
    display: Display | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Train Sobol points of the search space in both variants, and compare their orders.

    Each training is a trial of a study of its own in `out/transfer/`, so that an interrupted
    comparison goes on, and one with more λ begins with those that are there.

    Args:
        recipe: With a light `search.variant`; its seed is that of λ and trainings.
        out: Gets transfer.json, transfer.html and the folder transfer/. In a run folder, a
            search of the same task, model and variant warns if the variant misleads.
        trials: How many λ.
        force: Start anew.
        display: Where progress is shown; quiet if None.
        allow_code: Consent to code that the recipe names.

    Returns:
        The content of transfer.json.

    Raises:
        RecipeError: If the recipe has no light variant, or no search space.
        RunError: If `out` holds a comparison of another recipe.
        ValueError: If `trials` is less than 2.
    """
    if trials < 2:
        raise ValueError(f"Comparing orders takes at least two λ; got {trials}.")
    light = _light(recipe)
    out, display = Path(out), display or Display(quiet=True)
    folder = RunFolder(out / "transfer")
    with folder.claim(), log_to(folder.log, verbose=display.verbose):
        folder.check_recipe(light, stage=None, force=force)
        context = Context(light, folder, display, allow_code=allow_code)
        try:
            with full_disk_is_an_error(out):
                check(context)
                if force:
                    for name in (LIGHT, FULL):
                        context.loop().delete(name)
                else:
                    require_same_data(context)
                write_text(folder.recipe_file, light.to_yaml())
                write_environment(context)
                display.say(_plan(light, trials))
                rows = _train(context, trials)
                shutil.rmtree(folder.work, ignore_errors=True)
                return _write(context, out, recipe, rows)
        finally:
            context.close()


def _light(recipe: Recipe) -> Recipe:
    """What a comparison depends on; everything else at its default."""
    search, train = recipe.search, recipe.train
    if train.checkpoints is not None:
        raise RecipeError("A transfer trains; this recipe takes checkpoints that exist.")
    if isinstance(search.variant, str):
        raise RecipeError(
            "A transfer compares a light variant with the full model, but search.variant is "
            f"{search.variant}.",
            "Give one, as search.variant={freeze_layers: 6}.",
        )
    if not search.space:
        raise RecipeError(
            "A transfer needs a search space, but search.space is empty.",
            "Give ranges of hyper-parameters, as search.space.learning_rate.",
        )
    return recipe.model_copy(
        update={
            "search": SearchSection(
                trials=1, variant=search.variant, space=search.space, pruner="none"
            ),
            "train": train.model_copy(update={"epochs": search.epochs or train.epochs}),
            "fuse": FuseSection(
                evaluations=search.fused_evaluations or recipe.fuse.evaluations
            ),
            "storage": None,
        }
    )


def _full(context: Context) -> Context:
    """The same task, data and scorers, with the full model and the fusion of its members."""
    other = copy.copy(context)
    # No trial of a search: its members are not kept for a training to come.
    changes = {"variant": "full", "objective": "fused:mobo", "trials": 0}
    search = context.recipe.search.model_copy(update=changes)
    other.recipe = context.recipe.model_copy(update={"search": search})
    return other


def _plan(recipe: Recipe, trials: int) -> str:
    train = recipe.train
    return (
        f"transfer: {trials} λ, each trained for {passes(train.epochs)} in the light and in "
        f"the full variant, {2 * trials} trainings; the {train.members} members of each full "
        f"one are fused with {recipe.fuse.evaluations} evaluations"
    )


def _train(context: Context, trials: int) -> list[Trained]:
    """Bring both studies to so many trials; what is complete is not done again."""
    primary = context.task.objectives[1]
    for label, name in (("light", LIGHT), ("full", FULL)):
        with context.display.bar(label, trials) as bar:
            made = (
                TrialEvaluation(context, primary, bar)
                if name == LIGHT
                else _FusedTrialEvaluation(_full(context), primary, bar)
            )
            _study(context, name, made, bar, trials)
    return _rows(context.trials(LIGHT)[:trials], context.trials(FULL)[:trials])


def _study(
    context: Context, name: str, evaluate: TrialEvaluation, bar: Bar, trials: int
) -> None:
    recipe = context.recipe
    primary = context.task.objectives[1]
    # As many starting points as trials: all of them Sobol points, the same in both studies.
    sampler = HyperparameterSampler(
        distributions(recipe), primary, seed=recipe.seed, starts=trials
    )

    def show(study: optuna.Study, trial: FrozenTrial) -> None:
        value = f"{primary.name} {trial.value:.4f}" if trial.value is not None else "failed"
        bar.update(trial.number + 1, text=f"λ {trial.number}: {value}")

    loop: Loop = context.loop(show)
    loop.run(
        name,
        sampler,
        lambda trial: parameters(trial, sampler),
        evaluate,
        trials=trials,
        objectives=[primary],
    )
    bar.update(trials)


class _FusedTrialEvaluation(TrialEvaluation):
    """λ → the fused model's value, with that of its best member beside it."""

    def _more(self, evaluator: Evaluator, k: int) -> dict[str, Any]:
        name, sign = self.primary.name, self.primary.sign
        # `mobo` begins with the members: nothing is evaluated here.
        members = [evaluator(FusionWeights.one_hot(i, k)).values[name] for i in range(k)]
        return {BEST_OF_MEMBERS: max(members, key=lambda value: sign * value)}


def _rows(light: Sequence[FrozenTrial], full: Sequence[FrozenTrial]) -> list[Trained]:
    rows = []
    for cheap, whole in zip(light, full, strict=True):
        assert cheap.params == whole.params  # Sobol points of one seed
        done = whole.state == TrialState.COMPLETE
        failed = [
            f"{variant}: {trial.user_attrs.get(REASON, 'unknown')}"
            for variant, trial in (("light", cheap), ("full", whole))
            if trial.state == TrialState.FAIL
        ]
        rows.append(
            Trained(
                number=cheap.number,
                params=dict(cheap.params),
                light=cheap.value if cheap.state == TrialState.COMPLETE else None,
                light_loss=cheap.user_attrs.get(LOSS.name),
                full=float(whole.user_attrs["best_member"]) if done else None,
                best_member=float(whole.user_attrs[BEST_OF_MEMBERS]) if done else None,
                fused=whole.value if done else None,
                reason="; ".join(failed),
            )
        )
    return rows


def _write(
    context: Context, out: Path, recipe: Recipe, rows: Sequence[Trained]
) -> dict[str, Any]:
    primary: Objective = context.task.objectives[1]
    found = agreement(rows, "light", "full", primary)
    text = sentence(found, primary.name)
    settings = context.recipe
    content: dict[str, Any] = {
        "fusetune": package_version("fusetune"),
        "subject": subject(recipe),
        "seed": recipe.seed,
        "metric": primary.name,
        "epochs": settings.train.epochs,
        "members": settings.train.members,
        "fused_evaluations": settings.fuse.evaluations,
        "trials": [asdict(row) for row in rows],
        "light_full": to_json(found),
        "best_member_fused": to_json(agreement(rows, "best_member", "fused", primary)),
        "misleads": misleads(found),
        "sentence": text,
    }
    shown = page(
        context.task.name,
        rows,
        primary,
        text,
        facts=(
            context.source.label,
            f"{len(rows)} λ",
            passes(settings.train.epochs),
            f"seed {recipe.seed}",
        ),
        version=content["fusetune"],
    )
    write(shown, out / "transfer.html")
    write_json(out / FILE, content)
    context.display.say(text)
    context.display.say(shown.details[0])
    context.display.say(f"Transfer: {out / 'transfer.html'} and {FILE}")
    return content
