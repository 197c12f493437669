"""How Transformers turns the tensors of a checkpoint's files into those of a model.

Since version 5 many models hold their weights in another layout than their files: the experts
of a mixture are one stacked parameter in the model and one tensor for each expert in the files,
a fused projection of the files is three in the model, and many names differ.
`from_pretrained` converts when it loads and `save_pretrained` converts back. All of these
conversions are linear (tensors are renamed, stacked, split, transposed), so that the average of
converted members is the converted average, and members are averaged in their files' layout.

This module repeats what `transformers.core_model_loading.convert_and_load_state_dict_in_model`
does with the names, and leaves the tensors to the converters of Transformers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusetune.errors import MemberError
from fusetune.members.header import TensorSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """Tensors of the files that become one or several tensors of the model together.

    Attributes:
        sources: Name in the files → the converter's pattern that it matches, in the order in
            which the converter expects its tensors.
        first: The first tensor of the model that the conversion gives.
        converter: Transformers' own.
        model: Whose configuration and shapes the converter may ask for.
        prefix: Path of that model in the one that is filled, with a dot at its end.
    """

    sources: Mapping[str, str]
    first: str
    converter: WeightConverter
    model: PreTrainedModel
    prefix: str = ""

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert tensors in the files' layout to name → tensor in the model's layout.

        Args:
            tensors: At least those of `sources`, of any device; "meta" for the shapes alone.

        Raises:
            MemberError: If the converter cannot put them together.
        """
        converter = copy.deepcopy(self.converter)  # it keeps what it was given
        for name, pattern in self.sources.items():
            converter.add_tensor(self.first, name, pattern, tensors[name])  # type: ignore[arg-type]
        try:
            converted: dict[str, Any] = converter.convert(
                self.first, model=self.model, config=self.model.config
            )
        except (RuntimeError, ValueError, IndexError, AttributeError) as error:
            raise MemberError(
                f"{next(iter(self.sources))} and {len(self.sources) - 1} more tensors of the "
                f"members cannot be converted to {self.first}: {error}.",
                "Give the model that the members were trained as.",
            ) from error
        return {
            self.prefix + n: v[0] if isinstance(v, list) else v for n, v in converted.items()
        }

    def specs(self, tensors: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """What the conversion will give, found on the meta device without any data."""
        empty = {
            name: torch.empty(tensors[name].shape, dtype=tensors[name].dtype, device="meta")
            for name in self.sources
        }
        return {n: TensorSpec(t.dtype, tuple(t.shape)) for n, t in self(empty).items()}


@dataclass(frozen=True, slots=True)
class SavedLayout:
    """Where the tensors of files go in a model.

    Attributes:
        names: Name in the files → name in the model, of tensors that go there as they are; a
            name that the model does not have is one that the model has no place for.
        conversions: What becomes of the others.
    """

    names: Mapping[str, str]
    conversions: tuple[Conversion, ...] = ()


def saved_layout(model: nn.Module, files: Iterable[str], state: Iterable[str]) -> SavedLayout:
    """Find out where each tensor of a checkpoint's files goes in a model.

    Args:
        model: Any module. Only those of Transformers convert, all others load by name.
        files: Names in the files.
        state: Names of the model's own tensors.
    """
    from transformers import PreTrainedModel

    names = sorted(files)
    if isinstance(model, nn.Sequential) and not {*names} <= (known := {*state}):
        return _of_modules(model, names, known)
    if not isinstance(model, PreTrainedModel):
        return SavedLayout({name: name for name in names})
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    own: dict[str, Any] = dict.fromkeys(state, True)  # asked for names alone
    prefix = model.base_model_prefix
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
    plain: dict[str, str] = {}
    grouped: dict[str, dict[str, str]] = {}
    # A converter stacks experts in the order in which they come: 2 before 10.
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if target not in own and name in own:  # in the model's layout already
            target, pattern = rename_source_key(name, [], [], prefix, own)
        if pattern is None:
            plain[name] = target
        else:
            grouped.setdefault(target, {})[name] = pattern
    return SavedLayout(
        plain,
        tuple(
            Conversion(sources, first, by_pattern[next(iter(sources.values()))], model)
            for first, sources in grouped.items()
        ),
    )


def is_chain(model: nn.Module) -> bool:
    """Whether `save_pretrained` of a model writes a folder for each of its modules."""
    return isinstance(model, nn.Sequential) and hasattr(model, "save_pretrained")


def _of_modules(model: nn.Sequential, files: Sequence[str], state: Set[str]) -> SavedLayout:
    """The layout of sentence-transformers: a folder for each module, as `2_Dense/`.

    The first module's files are in the checkpoint's own folder. Where a module is a model of
    Transformers in a shell, the files have the names of that model.
    """
    from transformers import PreTrainedModel

    plain: dict[str, str] = {}
    conversions: list[Conversion] = []
    for i, module in enumerate(model):
        inner = ((n, m) for n, m in module.named_modules() if isinstance(m, PreTrainedModel))
        path, body = next(inner, ("", module))
        prefix = f"{i}.{path}." if path else f"{i}."
        mine = [name for name in files if _position(name) == i]
        folder = mine[0].rpartition("/")[0] + "/" if mine and "/" in mine[0] else ""
        own = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
        found = saved_layout(body, [name.removeprefix(folder) for name in mine], own)
        plain |= {folder + name: prefix + target for name, target in found.names.items()}
        conversions += [
            replace(one, sources={folder + n: p for n, p in one.sources.items()}, prefix=prefix)
            for one in found.conversions
        ]
    return SavedLayout(
        plain | {n: n for n in files if _position(n) >= len(model)}, (*conversions,)
    )


def _position(name: str) -> int:
    """The place in the chain of the module that a tensor is of: 2 of `2_Dense/linear.bias`."""
    folder, _, key = name.rpartition("/")
    number = re.match(r"(\d+)_", folder)
    return int(number[1]) if number and key else 0


def converts(model: nn.Module) -> bool:
    """Whether Transformers saves a model in another layout than it holds it in."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return False
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(model, add_legacy=False))


def to_saved_layout(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model under the names and in the shapes that `save_pretrained` writes.

    Args:
        model: Any module; only those of Transformers convert.
        tensors: Of the model's own state, or others under the same names.
    """
    if not converts(model):
        return dict(tensors)
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, dict(tensors)))  # type: ignore[arg-type]


def is_left_out_of_files(model: nn.Module, name: str) -> bool:
    """Whether Transformers expects that files lack a tensor, which the model makes by itself.

    Sinusoidal positions that `save_pretrained` leaves out, and buffers that older files lack.
    """
    if name in (getattr(model, "_keys_to_ignore_on_save", None) or ()):
        return True
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(name == b for b, _ in model.named_buffers()) and _matches(patterns, name)


def is_ignored_in_files(model: nn.Module, name: str) -> bool:
    """Whether Transformers expects in files a tensor that the model has no place for.

    Tensors of parts that a class leaves out, and constants that older versions saved.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return False
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    if any(buffer.endswith("rotary_emb.inv_freq") for buffer, _ in model.named_buffers()):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(buffer.endswith("position_ids") for buffer, _ in model.named_buffers()):
        patterns.add(r"(^|\.)position_ids$")
    return _matches(patterns, name)


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
