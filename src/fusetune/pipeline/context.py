"""A recipe, assembled: task, model, splits and storage, made once and on demand."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from fusetune.errors import RecipeError
from fusetune.evaluation.racing import StagedScorer
from fusetune.evaluation.scorer import Scorer
from fusetune.executors import find as find_executor
from fusetune.executors.executor import Executor
from fusetune.members.blocks import find_blocks
from fusetune.members.disk import require_space
from fusetune.methods.origin import Origin
from fusetune.models.device import DTYPES, choose_device, choose_precision
from fusetune.models.light import freeze_layers
from fusetune.models.load import ModelSource, resolve
from fusetune.models.lora import LoraSettings, add_lora, require_peft
from fusetune.optimization import RIVALS, rivals
from fusetune.optimization.constraint import Constraint
from fusetune.optimization.storage import open_storage, quiet, storing
from fusetune.optimization.study import Loop
from fusetune.pipeline.display import Display
from fusetune.pipeline.shared import SharedTrainings
from fusetune.pipeline.space import extremes
from fusetune.recipe import Recipe, Variant
from fusetune.run import RunFolder
from fusetune.tasks import find as find_task
from fusetune.tasks.splitting import Splitting
from fusetune.tasks.task import Collate, Encoded, OfModel, SplitName, Task
from fusetune.training import arguments
from fusetune.training.collect import plan_steps


class Context:
    """Everything that the stages share.

    Args:
        recipe: Validated.
        folder: Claimed by this process.
        display: Where progress is shown.
        shared: Trainings of other runs that this one may take over, and may hand on to.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        display: Display,
        shared: SharedTrainings | None = None,
    ) -> None:
        self.shared = shared
        self.recipe = recipe
        self.folder = folder
        self.display = display
        self._scorers: dict[SplitName, Scorer] = {}
        self._said: set[str] = set()

    @cached_property
    def task(self) -> Task:
        """The task with its data read and checked."""
        section = self.recipe.task
        split = section.split
        seed = self.recipe.seed if split is None or split.seed is None else split.seed
        splitting = Splitting(
            halve=split.halve if split else None,
            hold_out=split.hold_out if split else None,
            seed=seed,
        )
        make = find_task(section.kind)
        parameters = set(inspect.signature(make).parameters)
        if not section.inputs.keys() <= parameters:
            wanted = "prompt and reference" if "prompt" in parameters else "text and label"
            raise RecipeError(f"task: a task of kind {section.kind} takes {wanted}.")
        unknown = set(section.options) - parameters
        if unknown:
            names = ", ".join(sorted(unknown))
            raise RecipeError(f"task.options: a task of kind {section.kind} has no {names}.")
        return make(
            section.name or default_name(section.data),
            section.data,
            **section.inputs,
            metrics=section.metrics,
            splitting=splitting,
            **section.options,
        )

    @cached_property
    def source(self) -> ModelSource:
        """The pretrained model, found and checked."""
        section = self.recipe.model
        return resolve(
            section.name,
            revision=section.revision,
            allow_pickle=section.allow_pickle,
            trust_remote_code=section.trust_remote_code,
            gguf_file=section.gguf_file,
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.source.tokenizer(self._training_texts)

    def _training_texts(self) -> Iterator[str]:
        """All texts of the training split, answers included."""
        split = self.task.splits["train"]
        for texts, label in zip(split.texts, split.labels, strict=True):
            yield from texts
            if isinstance(label, tuple):
                yield from label

    @cached_property
    def collate(self) -> Collate:
        """Pads features into batches."""
        return self.task.collate(self.tokenizer)

    @cached_property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return choose_device(self.recipe.model.device)

    @cached_property
    def precision(self) -> str:
        """In which precision."""
        return choose_precision(self.recipe.model.precision, self.device)

    @cached_property
    def storage(self) -> optuna.storages.BaseStorage:
        """Where trials are kept."""
        return open_storage(self.recipe.storage or self.folder.journal)

    @cached_property
    def executor(self) -> Executor:
        """Where evaluations run."""
        section = self.recipe.executor
        return find_executor(section.kind)(**(section.model_extra or {}))

    @cached_property
    def constraint(self) -> Constraint | None:
        """What w† has to keep, if the recipe says so; its names are the task's."""
        text = self.recipe.fuse.constraint
        if text is None:
            return None
        constraint = Constraint.parse(text)
        constraint.check(self.task.objectives)
        return constraint

    def loop(self, on_trial: Callable[[optuna.Study, FrozenTrial], None] | None = None) -> Loop:
        """Runs studies of this run; a storage by URL may hold those of other runs too."""
        shared = self.recipe.storage is not None
        prefix = self.study_prefix if shared else ""
        return Loop(self.storage, self.executor, prefix=prefix, on_trial=on_trial)

    @cached_property
    def study_prefix(self) -> str:
        """What the run's studies are told apart by in a storage that others use too."""
        with storing(), quiet():
            taken = optuna.get_all_study_names(self.storage)
        return self.folder.study_prefix(taken)

    def trials(self, study: str) -> list[FrozenTrial]:
        """All trials of one of the run's studies; none if it was never begun."""
        found = self.loop().find(study)
        return [] if found is None else found.get_trials(deepcopy=False)

    def method_options(self, name: str) -> dict[str, Any]:
        """What the recipe sets of one method's own options."""
        fuse = self.recipe.fuse
        options: dict[str, dict[str, Any]] = {
            "mobo": {"prior": fuse.prior},
            "oracle": {"evaluations": fuse.oracle_evaluations},
        }
        return options.get(name, {})

    def note(self, text: str) -> None:
        """A warning for the user, once."""
        if text not in self._said:
            self._said.add(text)
            self.display.warn(text)

    def close(self) -> None:
        """Release the executor, if it was ever needed."""
        if "executor" in self.__dict__:
            self.executor.close()

    def encode(self, split: SplitName) -> Encoded:
        """A tokenised split."""
        if isinstance(self.task, OfModel):
            self.task.configure(self.source.config())
        return self.task.encode(split, self.tokenizer, self.recipe.model.max_length)

    @cached_property
    def train_data(self) -> Encoded:
        """The tokenised training split."""
        return self.encode("train")

    def scorer(self, split: SplitName) -> Scorer:
        """Evaluates models on a split; its batches are made once."""
        if split not in self._scorers:
            racing = self.recipe.fuse.racing and split == "validation"
            make = StagedScorer if racing else Scorer
            self._scorers[split] = make(
                self.task, self.encode(split), self.collate, self.device, DTYPES[self.precision]
            )
        return self._scorers[split]

    @cached_property
    def origin(self) -> Origin:
        """θ_0 and the training split, for methods that need them."""
        return Origin(lambda: dict(self.base().state_dict()), lambda: self.scorer("train"))

    def base(self) -> PreTrainedModel:
        """The pretrained model with the new head that every training begins with."""
        set_seed(self.recipe.seed)  # as the training does
        model = self.source.build(self.task.build)
        model.eval()
        return model

    @property
    def lora(self) -> LoraSettings | None:
        """The adapters of the full training, if it trains adapters."""
        section = self.recipe.model.lora
        return None if section is None else LoraSettings(**section.model_dump())

    def model_maker(self, variant: Variant | str = "full") -> Callable[[], PreTrainedModel]:
        """A function that builds the model, in full or as a light variant."""

        def make() -> PreTrainedModel:
            model = self.source.build(self.task.build)
            lora = self.lora
            if lora is not None:
                if isinstance(variant, Variant):
                    lora = lora.at_rank(variant.rank_of(lora.rank))
                return add_lora(model, lora)
            if isinstance(variant, Variant) and variant.freeze_layers is not None:
                freeze_layers(model, variant.freeze_layers)
            return model

        return make

    def training_arguments(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """The recipe's arguments with λ laid over them."""
        return {**self.recipe.train.arguments, **(params or {})}

    def check(self) -> None:
        """Find what is wrong before any long work starts.

        Raises:
            FusetuneError: If the data, the model, an argument, the number of members or
                the disk does not fit.
        """
        recipe = self.recipe
        self.source.check()
        _ = self.device, self.precision, self.executor, self.tokenizer
        _ = self.constraint
        inner = recipe.search.objective.removeprefix("fused:")
        for method in {*recipe.fuse.rows, recipe.fuse.sampler, inner}:
            if method in RIVALS:
                rivals.require(method)
        splits = self.task.splits
        if isinstance(self.task, OfModel):  # what does not fit the model shows in encoding
            _ = self.train_data, self.encode("validation"), self.encode("test")
        for note in self.task.notes:
            self.display.warn(note)
        size, kept = self._check_model()
        for params in extremes(recipe):
            settings = arguments.build(
                self.folder.work,
                self.training_arguments(params),
                epochs=recipe.train.epochs,
                seed=recipe.seed,
                device=self.device.type,
                precision=self.precision,
            )
            batch = settings.train_batch_size * settings.gradient_accumulation_steps
            epoch_steps = math.ceil(len(splits["train"]) / batch)
            total = (
                settings.max_steps
                if settings.max_steps > 0
                else math.ceil(epoch_steps * recipe.train.epochs)
            )
            plan_steps(total, recipe.train.members_each, recipe.train.collect_from)
        if self.folder.done("train") is None:
            # Members, two checkpoints with optimiser state (3 x each), and the fused model.
            copies = recipe.train.members + 6
            if recipe.trains_in_trials:  # those of the trial that goes on, beside the best
                copies += recipe.train.members_each
            require_space(self.folder.path, copies * kept + size)

    def _check_model(self) -> tuple[int, int]:
        """Build the model once; bytes of its weights, and of what a member keeps of them."""
        recipe = self.recipe
        if recipe.model.lora is not None:
            require_peft()
        light = recipe.search.trials and recipe.model.lora is None
        model = self.model_maker(recipe.search.variant if light else "full")()
        sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
        size = sum(nbytes for nbytes, _ in sizes)
        if "otfusion" in recipe.fuse.rows:
            plain = model if self.lora is None else self.base()
            shapes = {name: tuple(p.shape) for name, p in plain.state_dict().items()}
            find_blocks(plain.config.to_dict(), shapes)
        trained = sum(nbytes for nbytes, trains in sizes if trains)
        return size, size if self.lora is None else trained


def default_name(data: str | Mapping[Any, str]) -> str:
    """What a data set is called when the recipe does not say: its last word.

    "nyu-mll/glue:cola" and "../data/cola" are both "cola"; of a mapping, the folder counts.
    """
    if isinstance(data, str):
        return re.split(r"[/:\\]", data.rstrip("/"))[-1]
    first = Path(next(iter(data.values()))).absolute()
    return first.parent.name
