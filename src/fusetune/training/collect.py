"""Members from a training run: a callback for anybody's `transformers.Trainer`.

.. [Izmailov2018] P. Izmailov et al. Averaging Weights Leads to Wider Optima. UAI 2018.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fusetune.errors import StageError
from fusetune.members.adapter import WEIGHTS
from fusetune.members.adapter_keys import sort_keys
from fusetune.members.base import base_sha256, is_peft
from fusetune.members.base_load import unread_names
from fusetune.members.checkpoints.wrappers import without_wrappers
from fusetune.members.disk import replaced_folder, require_space
from fusetune.members.fit import check_can_be_collected
from fusetune.members.fully_sharded import is_sharded
from fusetune.members.manifest import write_manifest
from fusetune.members.member import SINGLE
from fusetune.members.saved_layout import is_chain
from fusetune.training.sharded import gather


def plan_steps(total: int, members: int, collect_from: float) -> tuple[int, ...]:
    """The steps after which a member is kept: evenly over the window, the last one included.

    Args:
        total: Optimiser steps of the whole training.
        members: k.
        collect_from: Share of the training before the window.

    Raises:
        StageError: If the window has fewer steps than members.
    """
    start = round(total * collect_from)
    window = total - start
    if window < members:
        raise StageError(
            f"{members} members need at least {members} steps after the first "
            f"{collect_from:.0%} of the training, which has {total} steps in all "
            f"and {window} after that.",
            "Train longer, use smaller batches, collect fewer members or collect earlier.",
        )
    return tuple(start + round(window * (i + 1) / members) for i in range(members))


def first_from(steps: Sequence[int], share: float, total: int) -> int:
    """Which of the members' steps is the first after a share of a training's `total` steps."""
    return next(i for i, step in enumerate(steps) if step >= round(share * total))


class MemberCollector(TrainerCallback):
    """Keeps k checkpoints of a training run, evenly over its last part.

    Only weights are kept, as safetensors, in `folder/step-000123/`: an ordinary model
    folder with a `member.json` that is written last, so that a folder with a manifest is
    complete. Under FSDP the first process gathers and writes each member whole, while all take
    part. Of a model that PEFT wrapped it is the adapter alone, and the digest of its base
    stands in the manifest. In a resumed training, members of steps after the resumed one are
    dropped: they belong to the trajectory that was cut off.

    Args:
        folder: Where the members go.
        members: k, how many.
        collect_from: Share of the training before the first member, 0 ≤ x < 1.
        tokenizer: Saved with each member if given, so that each is usable by itself.
        trajectory: Number of this training run, from 1, where several share the folder; its
            members are `folder/trajectory-1-step-000123/`.
        total_steps: Optimiser steps of a training loop of one's own, which calls `step`; a
            `Trainer` says it by itself.

    Raises:
        StageError: At the start of the training, if the window is too short for k members
            or the disk too small.
    """

    def __init__(
        self,
        folder: str | Path,
        members: int = 15,
        collect_from: float = 0.5,
        tokenizer: PreTrainedTokenizerBase | None = None,
        trajectory: int | None = None,
        total_steps: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.members = members
        self.collect_from = collect_from
        self.tokenizer = tokenizer
        self.trajectory = trajectory
        self.total_steps = total_steps
        self.steps: tuple[int, ...] = ()
        self._taken = 0
        self._base: str | None = None
        self._unread: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the members' folders, in order; empty before the training begins."""
        return tuple(member_name(step, self.trajectory) for step in self.steps)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Plan the steps, drop members of a cut-off trajectory, check the disk."""
        self.plan(state.max_steps)
        if is_sharded(_trained(kwargs)) and is_peft(_trained(kwargs)):
            raise StageError(
                "Adapters of a model that FSDP spreads over processes cannot be collected.",
                "Train adapters with one process, with DistributedDataParallel, or with "
                "model.device_map.",
            )
        if state.is_world_process_zero:
            self.prepare(_trained(kwargs), state.global_step)

    def plan(self, total: int) -> None:
        """Choose the steps of a training of `total` optimiser steps.

        Raises:
            StageError: If the window is too short for k members.
        """
        self.steps = plan_steps(total, self.members, self.collect_from)

    def prepare(self, model: nn.Module, taken: int) -> None:
        """Drop members of steps after `taken`; check that the others find space.

        Raises:
            StageError: If the disk is too small.
            MemberError: If what will be written could not be fused.
        """
        sharded = is_sharded(model)
        with without_wrappers(model) as network:
            adapter = is_peft(network)
            if not (adapter or sharded):
                check_can_be_collected(network)
            inner: Any = network
            self._base = base_sha256(inner) if adapter else None
            self._unread = unread_names(inner.get_base_model()) if adapter else frozenset()
        self.folder.mkdir(parents=True, exist_ok=True)
        own = member_name(0, self.trajectory).rstrip("0")
        for path in self.folder.iterdir():
            unfinished = path.name.startswith(f".{own}")
            if unfinished or (_step(path, own) or 0) > taken:
                shutil.rmtree(path)
        left = sum(step > taken for step in self.steps)
        kept = [p for p in model.parameters() if p.requires_grad or not adapter]
        size = sum(p.numel() * p.element_size() for p in kept)
        require_space(self.folder, left * size)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Keep the model if this step is one of the planned ones."""
        if state.global_step not in self.steps:
            return
        model = _trained(kwargs)
        whole = gather(model) if is_sharded(model) else None  # every process takes part
        if state.is_world_process_zero:
            self.save(model, state.global_step, state.epoch or 0.0, whole)

    def step(self, model: nn.Module) -> Path | None:
        """Count one optimiser step of a training loop of one's own.

        Returns:
            The folder of the member, if this step is one of the planned ones.

        Raises:
            StageError: At the first step, as in a `Trainer`; or if there are more steps than
                `total_steps`, or that is not known.
        """
        if self.total_steps is None:
            raise StageError(
                "A MemberCollector needs the number of optimiser steps to plan the members.",
                "Give total_steps=epochs * len(loader).",
            )
        if self._taken == 0:
            self.plan(self.total_steps)
            self.prepare(model, 0)
        self._taken += 1
        if self._taken > self.total_steps:
            raise StageError(
                f"The training took more steps than the {self.total_steps} of total_steps: the "
                "members are not those of its last part.",
                "Give the number of optimiser steps of the whole training.",
            )
        if self._taken not in self.steps:
            return None
        return self.save(model, self._taken)

    def save(
        self,
        model: nn.Module,
        step: int,
        epoch: float | None = None,
        whole: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Write one member atomically and return its folder.

        `whole` has the tensors of a model of which this process holds a part only.
        """
        final = self.folder / member_name(step, self.trajectory)
        with replaced_folder(final) as temporary, without_wrappers(model) as network:
            inner: Any = network
            if is_peft(inner):
                _save_adapter(inner, temporary, self._unread)
            elif hasattr(inner, "save_pretrained") and not is_chain(inner):
                inner.save_pretrained(temporary, **_given(whole))
            elif whole is not None:
                save_file(dict(whole), str(temporary / SINGLE))
            else:  # under the model's own names; tied tensors are written once
                save_model(inner, str(temporary / SINGLE))
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(temporary)
            write_manifest(
                temporary,
                step=step,
                epoch=epoch,
                trajectory=self.trajectory,
                base=self._base,
            )
        return final


def _given(whole: Mapping[str, Tensor] | None) -> dict[str, Any]:
    return {} if whole is None else {"state_dict": dict(whole)}


def _trained(given: Mapping[str, Any]) -> nn.Module:
    """The model of a callback's arguments; SetFit's trainer has its sentence encoder apart."""
    model: nn.Module = given.get("st_model", given["model"])
    return model


def _save_adapter(model: Any, folder: Path, unread: Collection[str]) -> None:
    """Adapter and configuration, and the configuration of the base with its head.

    Beside the adapter stands what the base's own files lack (`unread`): a head that was drawn
    at random and not trained, embeddings with added tokens. PEFT loads them with the adapter.
    """
    active = model.active_adapter
    model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=[active])
    if (folder / active / WEIGHTS).is_file():  # where PEFT puts adapters with a name
        for file in list((folder / active).iterdir()):
            file.rename(folder / file.name)
        (folder / active).rmdir()
    (folder / "README.md").unlink(missing_ok=True)  # an empty form that PEFT leaves
    if unread:
        held = load_file(folder / WEIGHTS)
        more = _frozen(model.state_dict(), unread)
        if more.keys() - held.keys():
            save_file({**more, **held}, folder / WEIGHTS, metadata={"format": "pt"})
    base = model.get_base_model()
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.save_pretrained(folder)
    if getattr(base, "generation_config", None) is not None:
        base.generation_config.save_pretrained(folder)


def _frozen(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Tensors of the base model under PEFT's names, without those that PEFT saves itself."""
    keys = sort_keys("The model", (key for key in state if "lora_" not in key))
    places = {**keys.whole, **keys.copies}
    own = {places[name] for name in names if name in places}
    trained = (".modules_to_save.", ".original_module.")
    return {k: state[k].cpu().clone() for k in own if not any(part in k for part in trained)}


def member_name(step: int, trajectory: int | None = None) -> str:
    """`step-000123`, or `trajectory-2-step-000123` where there are several."""
    name = f"step-{step:06d}"
    return name if trajectory is None else f"trajectory-{trajectory}-{name}"


def _step(path: Path, prefix: str) -> int | None:
    digits = path.name.removeprefix(prefix)
    return int(digits) if path.name.startswith(prefix) and digits.isdigit() else None
