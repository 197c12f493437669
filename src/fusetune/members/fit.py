"""Whether a checkpoint fits the model that its configuration names, before tensors are loaded.

The model is made on the meta device, which takes no memory, and bound to the names and shapes
of the checkpoint's files by the code that every fusion binds with.
"""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from fusetune.errors import MemberError
from fusetune.members.binding import Binding, check_keeps_its_weights
from fusetune.members.checkpoints.wrappers import places_in
from fusetune.members.header import TensorSpec
from fusetune.members.member import Member, architectures
from fusetune.members.saved_layout import to_saved_layout


def check_fits_its_model(member: Member) -> str:
    """Check a whole model against the class that its config.json names.

    Args:
        member: Not an adapter.

    Returns:
        The name of the class; empty if the files name none that Transformers has, so that only
        the caller's model can tell.

    Raises:
        MemberError: If a tensor of the model stands in no file, the files have one that the
            model has no place for, or a shape differs.
    """
    name = next((n for n in architectures(member.config) if hasattr(transformers, n)), "")
    if not name or not (member.loadable / "config.json").is_file():
        return ""
    if "auto_map" in member.config:  # its code runs by consent, not for a look
        return ""
    try:
        config = AutoConfig.from_pretrained(member.loadable, trust_remote_code=False)
        with torch.device("meta"):
            model: nn.Module = getattr(transformers, name)(config)
    except Exception as error:  # a strange configuration makes the library raise anything
        raise MemberError(
            f"The {name} that {member.loadable / 'config.json'} describes cannot be made: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error)}",
            "Check that file, or copy it from a checkpoint that loads.",
        ) from error
    try:
        own = {name: info for name, info in member.tensors.items() if not info.key}
        if member.lightning and (places := places_in(model, own)):
            own = {name: own[place] for name, place in places.items()}
        Binding(model, own)  # further modules have a class of their own
    except MemberError as error:
        raise MemberError(
            f"{member.path} does not fit {name}, which its config.json names. {error.message}",
            error.hint,
        ) from error
    return name


def check_can_be_collected(model: nn.Module) -> None:
    """Check that what `save_pretrained` will write can be fused again; nothing is written.

    Args:
        model: As it is trained, without wrappers. Others than models of Transformers are
            written under their own names, which always fit.

    Raises:
        MemberError: If its files would not fit the model, or it changes its own weights.
    """
    if not isinstance(model, PreTrainedModel):
        return
    check_keeps_its_weights(model)  # before what follows, which would give another reason
    state: dict[str, Tensor] = {
        name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)
    }
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    untied = remove_tied_weights_from_state_dict(state, model)
    empty = {name: value.to("meta") for name, value in untied.items()}
    saved = to_saved_layout(model, empty)
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in saved.items()}
    try:
        Binding(model, specs)
    except MemberError as error:
        raise MemberError(
            f"Checkpoints of {type(model).__name__} could not be fused after the training: "
            f"Transformers would save it in a form that does not load again. {error.message}",
            "Report this with the versions of fusetune and Transformers.",
        ) from error
