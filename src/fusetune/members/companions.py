"""What stands beside the weights of a checkpoint: files that go with the model, and parts.

Everything that a loader may read is copied: tokenizers, processors, chat templates, settings of
generation, modules, code. What is left out is named here instead: weights, the state of a
training, logs, what the export writes itself. Weights in files that no fusion reads (a value
head by itself) are parts that the fused model can only have where all members have the same.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from fusetune.errors import MemberError
from fusetune.members import formats
from fusetune.members.disk import file_sha256
from fusetune.members.manifest import MANIFEST
from fusetune.members.member import Member
from fusetune.models.own_files import leads_to_a_model

logger = logging.getLogger(__name__)

TOKENIZER = re.compile(
    r"(.*tokenizer.*\.json|.*\.(model|spm|tiktoken|codes)|(vocab|merges|spiece|dict)\b.*|vocab-.*"
    r"|special_tokens_map\.json|added_tokens\.json|entity_vocab\.json|normalizer\.json|tekken\.json"
    r"|.*vocab\.json|.*vocab\.txt)"
)
"""Names of files that make a tokenizer."""

TEMPLATE = re.compile(r"chat_template\..*|additional_chat_templates/.*")
PROCESSOR = re.compile(r"(.*_)?(pre)?processor_config\.json|feature_extractor.*\.json")
TEMPLATES = "additional_chat_templates"

STATE = re.compile(
    r"trainer_state\.json|training_args\..*|train(er|ing)_log.*|training_.*\.png|latest(_.*)?"
    r"|(all|train|eval|test|predict)_results\.json|events\.out\.tfevents.*|zero_to_fp32\.py"
    r"|source\.json|nohup\.out|.*\.(log|out|err|lock|tmp|distcp|index\.json)"
)
"""Names of what a training leaves beside a model, and of indexes of shards."""

OWN = frozenset({"config.json", "README.md", "fusion.json", "adapter_config.json", MANIFEST})
"""What the export writes itself."""

STATE_FOLDERS = re.compile(
    r"(tmp-)?(checkpoint|step|epoch|trajectory|global_step)[-_]?\d.*|(optimizer|pytorch_model_fsdp).*"
    r"|runs|logs|wandb|mlruns|lightning_logs|tensorboard|eval|members|converted|__pycache__"
    r"|onnx|openvino|coreml"
)
"""Names of folders of states and logs, and of the same weights for other programs."""

WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|ot|npz|npy|pkl|pickle|joblib|gguf)"
)
SAME_MODEL = re.compile(
    r"(model|pytorch_model|pytorch_model_fsdp|tf_model|flax_model|rust_model|adapter_model"
    r"|consolidated)(-\d+-of-\d+|\.\w+)?(\.\w+)?|.*\.(gguf|onnx|h5|msgpack|ot)"
)
"""Names of the model's own weights in any format: they never go with an average of them."""


LARGE = 1_000_000  # bytes; a file of a vocabulary, not of settings


def home(member: Member) -> Path:
    """The folder in which a checkpoint's files are, where the checkpoint itself is one file."""
    return member.path if member.path.is_dir() else member.path.parent


def files_of(folder: Path, weights: bool = False, deep: bool = True) -> dict[str, Path]:
    """Name → file of everything in a model's folder that goes with its weights.

    Code goes along only where a configuration there names it.

    Args:
        folder: Of the model.
        weights: Whether weights in other files than the model's own are taken, too.
        deep: Whether folders inside are looked into, other than that of chat templates.

    Returns:
        By names relative to the folder, with "/" on every system.
    """
    found = {
        name: file
        for name, file in _walk(folder, deep)
        if not _is_left_out(name) and (weights or not WEIGHTS.fullmatch(file.name))
    }
    settings = [file for name, file in found.items() if name.endswith(".json")]
    if any(map(_names_code, [folder / "config.json", *settings])):
        return found
    return {name: file for name, file in found.items() if not name.endswith(".py")}


def belongs_to_a_member(name: str) -> bool:
    """Whether a file is of a checkpoint's model, told by its name alone, where it is elsewhere.

    Args:
        name: Relative to the checkpoint, with "/".
    """
    *folders, last = name.split("/")
    if any(part.startswith(".") for part in (*folders, last)):
        return False
    if any(STATE_FOLDERS.fullmatch(folder) for folder in folders):
        return False
    if last == "trainer_state.json" or last.endswith((".safetensors", ".index.json")):
        return True
    return not (_is_state(name) or WEIGHTS.fullmatch(last))


def has_tokenizer(folder: Path) -> bool:
    """Whether the files of a tokenizer are in a folder."""
    return folder.is_dir() and any(
        TOKENIZER.fullmatch(file.name) for file in folder.iterdir() if file.is_file()
    )


def tokenizer_home(member: Member) -> Path | None:
    """The folder of a checkpoint's own tokenizer: its own, or the model's folder around it."""
    places = [home(member), around(member)]
    return next((place for place in places if place is not None and has_tokenizer(place)), None)


def around(member: Member) -> Path | None:
    """The folder around a checkpoint, if it is that of the same training's final model."""
    folder = home(member).absolute().parent
    for name in ("config.json", "adapter_config.json"):
        if (folder / name).is_file():
            kind = _json(folder / name).get("model_type")
            ours = member.config.get("model_type")
            return folder if kind is None or ours is None or kind == ours else None
    named = (folder / name for name in ("tokenizer_config.json", "preprocessor_config.json"))
    return folder if any(file.is_file() for file in named) else None


def companions(members: Sequence[Member], beside: Sequence[Path] = ()) -> dict[str, Path]:
    """Name → file of all that goes with the model that is made of checkpoints.

    Args:
        members: The checkpoints. It is the last one whose files are taken.
        beside: Folders of the model that the training began with. As the folder around the
            checkpoint, they give what the checkpoint lacks, and never a part of what it has: a
            tokenizer of its own takes no file of another's.
    """
    last = members[-1]
    own, weights = home(last), {file.absolute() for file in last.files}
    found: dict[str, Path] = {}
    is_folder = last.path.is_dir()
    if is_folder or (own / "config.json").is_file():
        inner = _inner_models(members)
        found = {
            name: file
            for name, file in files_of(own, weights=is_folder, deep=is_folder).items()
            if file.absolute() not in weights and _inner_model(own, name) in (None, *inner)
        }
    for place in (around(last), *beside):
        if place is None or not place.is_dir():
            continue
        kinds = {_kind(name) for name in found}
        for name, file in files_of(place, deep=False).items():
            strange = place in beside and _is_of_sentences(name)
            if name not in found and not strange and _kind(name) not in kinds - {""}:
                found[name] = file
    return found


def without_tokenizer(names: Mapping[str, Path]) -> dict[str, Path]:
    """The files without those of a tokenizer, which another one takes the place of."""
    return {name: file for name, file in names.items() if _kind(name) != "tokenizer"}


def copy_files(files: Mapping[str, Path], folder: Path) -> None:
    """Copy name → file into a folder, with the folders inside that the names say."""
    for name, file in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)


def check_parts(members: Sequence[Member]) -> None:
    """Refuse members with weights in other files that differ and would be left as they were.

    Raises:
        MemberError: With the file, and what to do.
    """
    inner = _inner_models(members)
    found = [_parts(member, inner) for member in members]
    for name in sorted(set().union(*found)):
        there = [files[name] for files in found if name in files]
        if len(there) == len(found) and _same(there):
            continue
        differs = "differs between the members"
        how = differs if len(there) == len(found) else "is not in all of them"
        raise MemberError(
            f"{there[0]} holds weights beside those of the model, and {how}: they would not be "
            "averaged with the rest.",
            hint="Fuse checkpoints that have all weights in one model, or, if these do not "
            "belong to it, move them out of the folders.",
        )


def _parts(member: Member, inner: Collection[Path]) -> dict[str, Path]:
    """Name → file of weights beside a checkpoint's own that nothing averages."""
    if not member.path.is_dir():
        return {}
    own = {file.absolute() for file in member.files}
    return {
        name: file
        for name, file in _walk(member.path)
        if WEIGHTS.fullmatch(file.name)
        and file.absolute() not in own
        and not _is_state(name)
        and not ("/" not in name and SAME_MODEL.fullmatch(name))
        and _inner_model(member.path, name) in (None, *inner)
    }


def _inner_model(folder: Path, name: str) -> Path | None:
    """The folder of a whole model of its own that a file is in, as `best_model/`."""
    for inside in list(Path(name).parents)[:-1]:
        config = folder / inside / "config.json"
        if (folder / inside / "adapter_config.json").is_file():
            return inside
        if config.is_file() and "model_type" in _json(config):
            return inside
    return None


def _inner_models(members: Sequence[Member]) -> set[Path]:
    """The folders of models inside which all members have: they are parts of these."""
    if len(members) < 2 or not all(member.path.is_dir() for member in members):
        return set()
    found = [
        {_inner_model(m.path, name) for name, _ in _walk(m.path) if "/" in name}
        for m in members
    ]
    return {place for place in set.intersection(*found) if place is not None}


def _same(files: Sequence[Path]) -> bool:
    if len({file.stat().st_size for file in files}) > 1:
        return False
    return len({file_sha256(file) for file in files}) == 1


def _walk(folder: Path, deep: bool = True) -> Iterator[tuple[str, Path]]:
    """Name and place of every visible file that is the folder's own, in order of the names."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if name[0] != "."
            and not STATE_FOLDERS.fullmatch(name)
            and (deep or name == TEMPLATES)
        )
        for name in sorted(files):
            file = Path(place) / name
            if name.startswith(".") or not file.is_file():
                continue
            if file.is_symlink() and not leads_to_a_model(file, folder):
                logger.warning("%s is left out: it is a link that leads elsewhere.", file)
                continue
            yield file.relative_to(folder).as_posix(), file


def _is_left_out(name: str) -> bool:
    same = SAME_MODEL.fullmatch(name) and WEIGHTS.fullmatch(name)
    return name in OWN or _is_state(name) or bool(same)


def _is_state(name: str) -> bool:
    last = name.rpartition("/")[2]
    return bool(STATE.fullmatch(last) or formats.BESIDE.match(last))


def _is_of_sentences(name: str) -> bool:
    return name == "modules.json" or re.match(r"(config_)?sentence_", name) is not None


def _kind(name: str) -> str:
    if TOKENIZER.fullmatch(name) or TEMPLATE.fullmatch(name):
        return "tokenizer"
    return "processor" if PROCESSOR.fullmatch(name) else ""


def _names_code(file: Path) -> bool:
    """Whether a configuration names classes that come with the model."""
    small = file.is_file() and file.stat().st_size < LARGE
    return small and "auto_map" in _json(file)


def _json(file: Path) -> Mapping[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
