"""A recipe, assembled: task, model, splits and storage, made once and on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from fusetune.errors import DataError
from fusetune.evaluation.scorer import Scorer
from fusetune.executors import find as find_executor
from fusetune.executors.executor import Executor
from fusetune.members.base import Base
from fusetune.members.companions import tokenizer_home
from fusetune.members.conversion import Conversion, open_member
from fusetune.members.fetch import fetch, is_url
from fusetune.members.member import Member
from fusetune.members.pool import inspect
from fusetune.methods.origin import Origin
from fusetune.models.device import (
    DTYPES,
    choose_device,
    choose_precision,
    require_trainable,
)
from fusetune.models.light import freeze_layers
from fusetune.models.load import ModelSource, resolve
from fusetune.models.lora import LoraSettings, add_lora
from fusetune.models.quantised import quantised_layers
from fusetune.optimization.constraint import Constraint
from fusetune.optimization.storage import open_storage, quiet, storing
from fusetune.optimization.study import Loop
from fusetune.pipeline import consent
from fusetune.pipeline.display import Display
from fusetune.pipeline.make_task import make_task
from fusetune.pipeline.shared import SharedTrainings, search_identity
from fusetune.recipe import Recipe, Variant
from fusetune.run import RunFolder
from fusetune.tasks.task import Collate, Encoded, OfModel, Split, SplitName, Task

OnTrial = Callable[[optuna.Study, FrozenTrial], None]

SEARCH = "search"
"""The study of the search over λ."""


class Context:
    """Everything that the stages share.

    Args:
        recipe: Validated.
        folder: Claimed by this process.
        display: Where progress is shown.
        shared: Trainings of other runs that this one may take over, and may hand on to.
        allow_code: Whether the user consents to code that the recipe names; see `consent`.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        display: Display,
        shared: SharedTrainings | None = None,
        *,
        allow_code: bool = False,
    ) -> None:
        self.shared = shared
        self.allow_code = allow_code
        self.recipe = recipe
        self.folder = folder
        self.display = display
        self._scorers: dict[SplitName, Scorer] = {}
        self._said: set[str] = set()

    @cached_property
    def code(self) -> tuple[str, ...]:
        """What the report says of code that the recipe names; said before it is imported.

        Raises:
            RecipeError: If the user has not consented to it.
        """
        section, folder = self.recipe.task, self.folder.path
        said = consent.require(section, folder, allow_code=self.allow_code)
        for line in said:
            self.note(line)
        return tuple(said)

    @cached_property
    def task(self) -> Task:
        """The task with its data read and checked."""
        _ = self.code
        trains = self.recipe.train.checkpoints is None
        return make_task(self.recipe.task, self.recipe.seed, trains=trains)

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
            device_map=section.device_map,
            quantization=section.quantization,
        )

    def _build(
        self,
        make: Callable[..., Any],
        *,
        spread: bool = False,
        dtype: torch.dtype | None = None,
    ) -> PreTrainedModel:
        precision = DTYPES[self.precision]
        return self.source.build(
            make, device=self.device, precision=precision, spread=spread, dtype=dtype
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; of checkpoints that exist already, their own if it is there.

        A training may have given them another template, other special tokens, more tokens.
        """
        home = None if self.last_checkpoint is None else tokenizer_home(self.last_checkpoint)
        if home is None:
            return self.source.tokenizer(self._training_texts)
        options = {"trust_remote_code": self.recipe.model.trust_remote_code}
        return replace(
            self.source, path=str(home), label=str(home), options=options
        ).tokenizer()

    @cached_property
    def last_checkpoint(self) -> Member | None:
        """The last of `train.checkpoints`; None where the run trains its members itself."""
        patterns, pickled = self.recipe.train.checkpoints, self.recipe.model.allow_pickle
        if patterns is None:
            return None
        recorded = (self.folder.done("train") or {}).get("paths", ())
        if not recorded:
            return inspect(patterns, allow_pickle=pickled).members[-1]
        path = fetch(recorded[-1]) if is_url(recorded[-1]) else Path(recorded[-1])
        return open_member(path, Conversion(allow_pickle=pickled))

    def _training_texts(self) -> Iterator[str]:
        """All texts of the training split, answers included."""
        split = self._split("train")
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
        location = self.recipe.storage or self.folder.journal
        return open_storage(location, heartbeats=self.recipe.study is not None)

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
        objectives = self.task.objectives
        constraint = Constraint.parse(text, names=[o.name for o in objectives])
        constraint.check(objectives)
        return constraint

    def loop(self, on_trial: OnTrial | None = None) -> Loop:
        """Runs studies of this run; a storage by URL may hold those of other runs too."""
        prefix = self.study_prefix if self.recipe.storage is not None else ""
        return Loop(self.storage, self.executor, prefix=prefix, on_trial=on_trial)

    def search_loop(self, on_trial: OnTrial | None = None) -> Loop:
        """Runs the search over λ, which several runs may share by the recipe's `study`."""
        name = self.recipe.study
        if name is None:
            return self.loop(on_trial)
        settings = {"prefix": f"{name}/", "shared": search_identity(self.recipe, self.task)}
        return Loop(self.storage, self.executor, on_trial=on_trial, **settings)

    @cached_property
    def study_prefix(self) -> str:
        """What the run's studies are told apart by in a storage that others use too."""
        with storing(), quiet():
            taken = optuna.get_all_study_names(self.storage)
        return self.folder.study_prefix(taken)

    def trials(self, study: str) -> list[FrozenTrial]:
        """All trials of one of the run's studies; none if it was never begun."""
        found = (self.search_loop() if study == SEARCH else self.loop()).find(study)
        return [] if found is None else found.get_trials(deepcopy=False)

    def method_options(self, name: str) -> dict[str, Any]:
        """What the recipe sets of one method's own options."""
        fuse = self.recipe.fuse
        options: dict[str, dict[str, Any]] = {
            "mobo": {"prior": fuse.prior},
            "layers": {"prior": fuse.prior},
            "oracle": {"evaluations": fuse.oracle_evaluations},
        }
        return options.get(name, {})

    def note(self, text: str) -> None:
        """A warning for the user, once."""
        if text not in self._said:
            self._said.add(text)
            self.display.warn(text)

    def release(self) -> None:
        """Let the executor give back what it holds between stages."""
        if "executor" in self.__dict__:
            self.executor.release()

    def close(self) -> None:
        """Release the executor, if it was ever needed."""
        if "executor" in self.__dict__:
            self.executor.close()

    def encode(self, split: SplitName) -> Encoded:
        """A tokenised split.

        Raises:
            DataError: If there is no such split; train may be absent where nothing trains.
        """
        _ = self._split(split)
        if isinstance(self.task, OfModel):
            self.task.configure(self.source.config())
        return self.task.encode(split, self.tokenizer, self.recipe.model.max_length)

    def _split(self, name: SplitName) -> Split:
        splits = self.task.splits
        if name not in splits:
            raise DataError(f"There is no {name} split; the data set has {', '.join(splits)}.")
        return splits[name]

    @cached_property
    def train_data(self) -> Encoded:
        """The tokenised training split."""
        return self.encode("train")

    def scorer(self, split: SplitName) -> Scorer:
        """Evaluates models on a split; its batches are made once."""
        if split not in self._scorers:
            self._scorers[split] = Scorer(
                self.task, self.encode(split), self.collate, self.device, DTYPES[self.precision]
            )
        return self._scorers[split]

    @cached_property
    def origin(self) -> Origin:
        """θ_0 and the training split, for methods that need them."""
        return Origin(self._initial, lambda: self.scorer("train"))

    def _initial(self) -> Mapping[str, Tensor]:
        base = self.base()
        return Base(base).tensors if quantised_layers(base) else dict(base.state_dict())

    def base(
        self, *, spread: bool = False, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """The pretrained model with the new head that every training begins with.

        `spread` lays it where `model.device_map` says; otherwise it is on the CPU. `dtype` is
        that of the weights, by default the configuration's.
        """
        set_seed(self.recipe.seed)  # as the training does
        model = self._build(self.task.build, spread=spread, dtype=dtype)
        model.eval()
        return model

    def pretrained(self) -> tuple[PreTrainedModel, frozenset[str]]:
        """The same, and the names of the tensors that were drawn, as it has none of its own."""
        drawn: set[str] = set()

        def make(path: str, **options: Any) -> Any:
            built: Any = self.task.build(path, **options)
            if isinstance(built, tuple):  # else a model without weights, drawn as a whole
                drawn.update(built[1]["missing_keys"])
            return built

        set_seed(self.recipe.seed)
        return self._build(make).eval(), frozenset(drawn)

    @property
    def lora(self) -> LoraSettings | None:
        """The adapters of the full training, if it trains adapters."""
        section = self.recipe.model.lora
        return None if section is None else LoraSettings(**section.model_dump())

    def model_maker(self, variant: Variant | str = "full") -> Callable[[], PreTrainedModel]:
        """A function that builds the model, in full or as a light variant."""

        def make() -> PreTrainedModel:
            model = self._build(self.task.build, spread=True)
            require_trainable(model)
            lora = self.lora
            if lora is not None:
                if isinstance(variant, Variant):
                    lora = lora.at_rank(variant.rank_of(lora.rank))
                return add_lora(model, lora)
            if isinstance(variant, Variant) and variant.freeze_layers is not None:
                freeze_layers(model, variant.freeze_layers)
            return model

        return make

    def training_arguments(
        self, params: dict[str, Any] | None = None, part: str = ""
    ) -> dict[str, Any]:
        """The recipe's arguments with λ laid over them.

        `part` of the run makes the name under which it is reported, if it is.
        """
        arguments = {**self.recipe.train.arguments, **(params or {})}
        if part and arguments.get("report_to", "none") != "none":
            named = arguments.get("run_name") or self.folder.path.resolve().name
            arguments["run_name"] = f"{named}/{part}"
        return arguments
