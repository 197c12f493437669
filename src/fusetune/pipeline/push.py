"""A fused model for the Hugging Face Hub: its files, its card with metadata, the upload."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData, constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from fusetune.errors import RunError
from fusetune.files.record import mapping, read_record
from fusetune.members.export import FUSION
from fusetune.run import RunFolder

CARD = "README.md"
ADAPTER = "adapter_config.json"
LINES = 3  # of an answer of the Hub; the reason is not always in the first one
AGAIN = "Run the same command again: what is there is not sent twice."
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."


@dataclass(frozen=True, slots=True)
class Publication:
    """What would go to the Hub.

    Attributes:
        repo: As user/name.
        folder: The exported model.
        texts: README.md, the card, and what else is not sent as it stands in the folder.
        files: Every other file, by its name in the repository, with "/".
        notes: What a reader of the card will miss.
    """

    repo: str
    folder: Path
    texts: Mapping[str, str]
    files: Mapping[str, Path]
    notes: tuple[str, ...]

    @property
    def card(self) -> str:
        """README.md as it will stand there."""
        return self.texts[CARD]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by name."""
        found = {name: file.stat().st_size for name, file in self.files.items()}
        made = {name: len(text.encode()) for name, text in self.texts.items()}
        return dict(sorted({**found, **made}.items()))


def prepare(
    path: Path, repo: str, *, license: str | None = None, base_model: str | None = None
) -> Publication:
    """Gather what goes to the Hub; nothing is sent.

    Args:
        path: A run folder whose members were fused, or a folder that `fusetune export` wrote.
        repo: As user/name.
        license: The Hub's identifier of a licence, for the card.
        base_model: Hub id of the model that was fine-tuned; by default what the card has.

    Raises:
        RunError: If there is no model, or the name can be no repository's.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise RunError(f"{repo!r} can be no repository: {error}", "Give user/name.") from error
    if "/" not in repo:
        raise RunError(f"A repository is user/name; got {repo!r}.", f"As me/{repo}.")
    fused = RunFolder(path).fused
    folder = fused if (fused / FUSION).is_file() else path
    _refuse_links(folder, fused)
    if not (folder / FUSION).is_file():
        raise RunError(
            f"{path} holds no fused model: neither {FUSION} nor fused/{FUSION}.",
            f"Run `fusetune run {path}` first, or give a folder of `fusetune export`.",
        )
    card = _card(folder / CARD)
    data = card.data
    assert isinstance(data, ModelCardData)
    data.license = license or data.license
    data.base_model = base_model or data.base_model
    if data.eval_results:
        data.model_name = repo.rpartition("/")[2]
    text = _with_location(str(card), {path.resolve().name, folder.resolve().name}, repo)
    texts, notes = {CARD: text}, _missing(data)
    local = _local_base(folder)
    if local is not None and base_model is not None:
        adapter = (folder / ADAPTER).read_text(encoding="utf-8")
        for name, content in ((CARD, text), (ADAPTER, adapter)):
            texts[name] = content.replace(json.dumps(local), json.dumps(base_model))
    elif local is not None:
        notes = (*notes, f"{ADAPTER} names the folder {local}, which nobody else has.")
    there = sorted(file for file in folder.rglob("*") if file.is_file())
    files = {file.relative_to(folder).as_posix(): file for file in there}
    others = {name: file for name, file in files.items() if name not in texts}
    return Publication(repo, folder, texts, others, notes)


def _refuse_links(folder: Path, fused: Path) -> None:
    """Check that only what lies in the folder would be sent, not what links in it lead to.

    Raises:
        RunError: If there is a link, or something that is neither file nor folder.
    """
    places = [folder] if folder == fused else []
    for place in (*places, *(sorted(folder.rglob("*")) if folder.is_dir() else ())):
        if place.is_symlink() or not (place.is_file() or place.is_dir()):
            raise RunError(
                f"{place} is a link, or no ordinary file: what it leads to would be published.",
                "Remove it, or put the file itself in its place.",
            )


def _card(file: Path) -> ModelCard:
    """The card of an exported model.

    Raises:
        RunError: If it is not there, or its metadata cannot be read.
    """
    try:
        card = ModelCard(file.read_text(encoding="utf-8"))
    except Exception as error:  # of YAML, of the library's own checks
        raise RunError(
            f"{file} is no model card: {type(error).__name__}: {error}.",
            "Write the model again with `fusetune export RUN --out FOLDER`.",
        ) from error
    return card


def push(publication: Publication, *, private: bool = False) -> str:
    """Make the repository if need be, and commit all files at once.

    The token is that of huggingface_hub: `hf auth login`, or HF_TOKEN.

    Args:
        publication: What to send.
        private: Whether a new repository is private; an existing one stays what it is.

    Returns:
        The address of the model's page.

    Raises:
        RunError: If there is no token, the Hub refuses it, or it cannot be reached.
    """
    token = huggingface_hub.get_token()
    if not token:
        raise RunError("Nobody is logged in to the Hugging Face Hub.", LOGIN)
    api = HfApi(token=token)
    try:
        api.whoami()
        url = api.create_repo(publication.repo, private=private, exist_ok=True)
        operations = [
            *(CommitOperationAdd(n, t.encode()) for n, t in publication.texts.items()),
            *(CommitOperationAdd(n, str(file)) for n, file in publication.files.items()),
        ]
        api.create_commit(
            publication.repo, operations, commit_message="Upload the fused model (fusetune)"
        )
    except OfflineModeIsEnabled as error:
        raise RunError("The Hub cannot be reached: HF_HUB_OFFLINE is set.") from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # Without its cause: the error's request has the token.
        raise _failure(error, publication.repo, token) from None
    return str(url)


def _failure(error: Exception, repo: str, token: str) -> RunError:
    """What went wrong in words of ours, with the Hub's reason and without the token."""
    told = [error]
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        told.append(error.__cause__)  # an upload of its own: which file, and why
    lines = []
    for part in told:
        text = getattr(part, "server_message", None) or str(part)
        lines += [line.strip() for line in text.strip().splitlines()[:LINES]]
    reason = " ".join(filter(None, lines)).replace(token, "…")
    last = told[-1]
    status = last.response.status_code if isinstance(last, HfHubHTTPError) else None
    if status in (401, 403) or isinstance(last, PermissionError):
        return RunError(f"The Hub refuses {repo}: {reason}", LOGIN)
    if isinstance(last, HTTPError | ConnectionError) and status is None:
        return RunError(
            f"The Hub cannot be reached at {constants.ENDPOINT}: {reason}",
            f"Look at the network and at HF_ENDPOINT. {AGAIN}",
        )
    return RunError(f"The Hub did not take {repo}: {reason}", AGAIN)


def _local_base(folder: Path) -> str | None:
    """The folder that an adapter names as its base model; None if it names a hub id."""
    config = read_record(folder / ADAPTER, mapping, "Write the model again.")
    if config is None:
        return None
    name = str(config.get("base_model_name_or_path") or "")
    return name if Path(name).is_absolute() or Path(name).is_dir() else None


def _with_location(card: str, names: set[str], repo: str) -> str:
    """The card's code with the place on the Hub in the place of the folder's name."""
    for name in names:
        quoted = json.dumps(name, ensure_ascii=False)
        card = card.replace(f"({quoted})", f"({json.dumps(repo)})")
        card = card.replace(f"(base, {quoted})", f"(base, {json.dumps(repo)})")
    return card


def _missing(data: ModelCardData) -> tuple[str, ...]:
    notes = []
    if not data.license:
        notes.append("The card names no licence: give --license, such as apache-2.0.")
    if not data.base_model:
        notes.append("The card names no base model: give --base-model, its id on the Hub.")
    if not data.eval_results:
        notes.append("The card has no evaluation results: `fusetune report` writes them.")
    return tuple(notes)
