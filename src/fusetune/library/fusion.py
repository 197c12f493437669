"""`fuse`: any checkpoints and any function of a model in, the best combination out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from fusetune.library.function import Evaluate
from fusetune.library.pool import BaseMember
from fusetune.library.result import Fused
from fusetune.library.search import Fusion, Rule, Step
from fusetune.members.discover import Paths
from fusetune.members.pool import MemberPool
from fusetune.objective import Objective


def fuse(
    pool: MemberPool | Paths,
    *,
    evaluate: Evaluate,
    objectives: Sequence[str | Objective],
    direction: str | Sequence[str] | None = None,
    primary: str | None = None,
    model_init: Callable[[], nn.Module] | None = None,
    budget: int | None = None,
    method: str = "mobo",
    choose: Rule = "consensus",
    seed: int = 0,
    device: str | torch.device | None = None,
    folder: str | Path | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    base_member: BaseMember = None,
    callbacks: Sequence[Callable[[Step], object]] = (),
) -> Fused:
    """Find the convex combination of checkpoints that is best in all objectives at once.

    Args:
        pool: k ≥ 2 members, or the folders they are in: a glob, a folder, a list.
        evaluate: Model → its values, as `{"loss": 0.4, "f1": 0.8}`, over a whole validation
            split. The model is in evaluation mode and on its device; gradients are the
            function's business. It must not change the parameters.
        objectives: What of these values counts, as `["loss", "f1:maximize"]`.
        direction: Of objectives without one; as in `Trainer.hyperparameter_search`.
        primary: The objective that decides; by default the first that is not the loss.
        model_init: Makes a model of the members' kind, as `Trainer`'s; not needed for the
            checkpoints of Transformers, whose config.json names the class. For adapters, the
            model that they are laid on, or PEFT's around it.
        budget: Candidates in all, members included; 6 k by default.
        method: `mobo`, `bo`, or one of Optuna's samplers at the same budget.
        choose: By which rule the result is chosen; what the others chose is in `methods`.
        seed: The only source of randomness of the search.
        device: Where to evaluate; by default where `model_init` puts the model, else the
            best there is.
        folder: Keeps the candidates, so that a call that was killed goes on there.
        allow_pickle: Consent to members that are files of `torch.save`, read with
            `weights_only`.
        trust_remote_code: Consent to run code that comes with the members' model.
        base_member: The model that the training began with, as one more member: a module, a
            folder or a hub id; of adapters, True. What it lacks, a new head, is the first
            member's. `finetune` and `swa` leave it out.
        callbacks: Called with a `Step` after each candidate.

    Returns:
        The result; `save` writes the model, `report` a page, `front` and `pick` give others.

    Raises:
        EvaluateError: If objectives have no direction, or `evaluate` does not do its part.
        MemberError: If the checkpoints do not fit together, or are all the same.
        ModelError: If no model of their kind can be made.
        RunError: If `folder` holds another fusion, or another process holds it.
        NoResultError: If no candidate could be evaluated.
    """
    search = Fusion(
        pool,
        evaluate=evaluate,
        objectives=objectives,
        direction=direction,
        primary=primary,
        model_init=model_init,
        budget=budget,
        method=method,
        choose=choose,
        seed=seed,
        device=device,
        folder=folder,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        base_member=base_member,
    )
    return search.finish(callbacks)
