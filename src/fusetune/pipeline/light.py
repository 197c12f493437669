"""What the trials of the search train with; light ones start at their first trained layer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusetune.errors import StageError
from fusetune.evaluation.batching import CPU_TOKENS, GPU_TOKENS, token_batches
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.scorer import Scorer
from fusetune.executors.group import current
from fusetune.members.disk import require_space
from fusetune.models import prefix, prefix_cache
from fusetune.models.device import DTYPES
from fusetune.models.light import Frozen, freeze_layers
from fusetune.models.prefix import ROWS, PrefixError
from fusetune.models.prefix_cache import PrefixCache
from fusetune.pipeline.context import Context
from fusetune.recipe import Recipe
from fusetune.recipe_sections import PrefixCacheSection, Variant
from fusetune.tasks.task import SIZE, Collate, Encoded

CHECKED = 8  # examples on which stored and computed activations are compared, per trial

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrialParts:
    """Attributes:
    make_model: Builds the model of a trial.
    data: What it trains on.
    collate: Pads it.
    score: The values of a model on the validation split.
    """

    make_model: Callable[[], PreTrainedModel]
    data: Encoded
    collate: Collate
    score: Callable[[nn.Module], Evaluation]


def trial_parts(context: Context) -> TrialParts:
    """The parts for the recipe's variant, with kept activations of its frozen layers.

    Where these cannot be kept (an architecture whose layers hand on more than hidden
    states, the size limit, a full disk), a note says so and every trial computes them.
    """
    search = context.recipe.search
    plain = TrialParts(
        context.model_maker(search.variant),
        context.train_data,
        context.collate,
        context.scorer("validation"),
    )
    freeze = search.variant.freeze_layers if isinstance(search.variant, Variant) else None
    if freeze is None or search.prefix_cache is False:
        return plain
    try:
        return _Cached(context, freeze, search.prefix_cache).parts()
    except (PrefixError, StageError, OSError) as error:
        context.display.say(f"search: each trial computes its frozen layers, as {error}")
        return plain


@dataclass(frozen=True, slots=True)
class RowCollate:
    """Pads features, and hands on which example each of them is."""

    collate: Collate

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One padded batch, with the places of its examples in the cache."""
        plain = [{n: v for n, v in feature.items() if n != ROWS} for feature in features]
        return self.collate(plain) | {ROWS: torch.tensor([f[ROWS] for f in features])}


class _Cached:
    """Builds or opens the cache of a run, and the parts that use it."""

    def __init__(self, context: Context, freeze: int, options: PrefixCacheSection) -> None:
        self.context = context
        self.freeze = freeze
        self.options = options
        train, validation = context.train_data, context.encode("validation")
        self.train = _numbered(train, 0)
        self.validation = _numbered(validation, len(train))
        self.features = (*self.train.features, *self.validation.features)
        self.lengths = np.concatenate([train.lengths, validation.lengths])
        self.collate = RowCollate(context.collate)
        self.dtype = prefix_cache.DTYPES[options.dtype]
        _require_use(context.recipe, len(train), len(validation))
        if SIZE in validation[0]:
            raise PrefixError("an example is more than one text to read")
        if any("attention_mask" not in feature for feature in self.features[:1]):
            raise PrefixError("the tokenizer gives no attention mask")
        if context.recipe.model.device_map is not None:
            raise PrefixError("model.device_map lays the model on several devices")
        if context.device.type == "cuda" and torch.cuda.device_count() > 1:
            raise PrefixError("the Trainer copies the model to several GPUs")
        if current() is not None:
            raise PrefixError("several processes train one model")

    def parts(self) -> TrialParts:
        context = self.context
        cache = self._open()

        def make() -> PreTrainedModel:
            model, frozen = self._light_model()
            try:
                self._use(model, frozen, cache)
            except PrefixError as error:
                raise StageError(
                    f"The frozen layers of this trial are not those of the cache: {error}.",
                    "Write search.prefix_cache: false.",
                ) from error
            return model

        scorer = Scorer(
            context.task,
            self.validation,
            self.collate,
            context.device,
            DTYPES[context.precision],
        )
        return TrialParts(make, self.train, self.collate, scorer)

    def _open(self) -> PrefixCache:
        """The cache: that of an earlier start if it is sound, else a new one."""
        model, frozen = self._light_model()
        with self._autocast():
            states = prefix.require_constant(model, frozen, self._batch(self._probe))
        width = states.shape[2]
        size = prefix_cache.nbytes(self.lengths, width, self.dtype)
        if size > self.options.limit_gb * 1e9:
            raise PrefixError(
                f"their activations are {size / 1e9:.1f} GB and search.prefix_cache allows "
                f"{self.options.limit_gb:g}"
            )
        path = self._path(prefix.fingerprint(model, frozen))
        if path.is_file():
            try:
                cache = PrefixCache(path, self.lengths, width, self.dtype, states.dtype)
                self._use(model, frozen, cache)
                return cache
            except (ValueError, PrefixError) as error:
                log.warning("prefix cache: %s is made anew: %s", path, error)
                model, frozen = self._light_model()
        require_space(path, size)
        self._build(model, frozen, path)
        cache = PrefixCache(path, self.lengths, width, self.dtype, states.dtype)
        self._use(model, frozen, cache)
        log.info("prefix cache: %d layers, %.1f MB", frozen.layers, size / 1e6)
        return cache

    def _path(self, model: str) -> Path:
        """The file's name holds all that its content depends on."""
        context = self.context
        key = (
            *(torch.__version__, transformers.__version__, model),
            *(self.train.fingerprint, self.validation.fingerprint),
            *(context.device.type, context.precision, self.dtype),
        )
        return context.folder.work / "prefix" / f"{prefix_cache.digest(key)}.bin"

    def _build(self, model: PreTrainedModel, frozen: Frozen, path: Path) -> None:
        tokens = CPU_TOKENS if self.context.device.type == "cpu" else GPU_TOKENS
        batches: Iterator[tuple[NDArray[np.int64], dict[str, Tensor]]] = (
            (rows, self._batch(rows)) for rows in token_batches(self.lengths, tokens)
        )
        with prefix.evaluation_mode(model), torch.no_grad(), self._autocast():
            prefix_cache.build(
                path,
                self.lengths,
                batches,
                lambda inputs: prefix.hidden_states(model, frozen, inputs),
                self.dtype,
            )

    def _use(self, model: PreTrainedModel, frozen: Frozen, cache: PrefixCache) -> None:
        prefix.attach(model, frozen, cache)
        inputs = self._batch(self._probe)
        with self._autocast():
            prefix.check(model, inputs, inputs[ROWS], cache.dtype)

    def _light_model(self) -> tuple[PreTrainedModel, Frozen]:
        model = self.context.model_maker()()
        frozen = freeze_layers(model, self.freeze)
        model.to(self.context.device)  # type: ignore[arg-type]
        return model, frozen

    @property
    def _probe(self) -> NDArray[np.int64]:
        """Examples of all lengths, the shortest and the longest among them."""
        order = np.argsort(self.lengths, kind="stable")
        places = np.linspace(0, len(order) - 1, min(CHECKED, len(order)))
        return np.asarray(order[places.astype(np.int64)])

    def _batch(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        inputs = self.collate([self.features[int(i)] for i in rows])
        return {name: value.to(self.context.device) for name, value in inputs.items()}

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES[self.context.precision]
        lower = dtype is not torch.float32
        return torch.autocast(self.context.device.type, dtype, enabled=lower)


def _require_use(recipe: Recipe, train: int, validation: int) -> None:
    """Refuse a cache that costs more than it saves, as trials read a small part of the rows."""
    search = recipe.search
    read = search.trials * (round((search.epochs or recipe.train.epochs) * train) + validation)
    if read < train + validation:
        raise PrefixError(
            f"all trials together read {read:,} examples, fewer than the "
            f"{train + validation:,} whose activations would be kept"
        )


def _numbered(encoded: Encoded, start: int) -> Encoded:
    """The split with the place of each example in the cache."""
    features = tuple({**f, ROWS: start + i} for i, f in enumerate(encoded.features))
    return dataclasses.replace(encoded, features=features)
