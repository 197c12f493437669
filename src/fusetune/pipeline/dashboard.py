"""A run in optuna-dashboard: its studies with names for what they hold, followed live."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna

from fusetune.errors import RunError
from fusetune.methods.layers import NAME as LAYERS
from fusetune.methods.search import is_study_of_weights, study_name
from fusetune.optimization.storage import quiet
from fusetune.pipeline.context import SEARCH
from fusetune.pipeline.studies import storage_of
from fusetune.run import RunFolder


def app(path: Path) -> Any:
    """The dashboard of a run, a WSGI application.

    What is done in it changes nothing in a run whose trials are in its journal. A storage by
    URL is opened as it is.

    Raises:
        RunError: If optuna-dashboard is not installed, or there is no run.
    """
    try:
        import optuna_dashboard
    except ImportError as error:
        raise RunError(
            "The dashboard needs optuna-dashboard, which is not installed.",
            "Run `pip install 'fusetune[dashboard]'`.",
        ) from error
    storage, prefix = storage_of(path)
    with quiet():
        for name in optuna.get_all_study_names(storage):
            if not name.startswith(prefix):
                continue
            study = optuna.load_study(study_name=name, storage=storage)
            if not optuna_dashboard.get_note(study):
                text = note(RunFolder(path), name.removeprefix(prefix))
                optuna_dashboard.save_note(study, text)
    return optuna_dashboard.wsgi(storage)


def serve(path: Path, *, host: str, port: int, announce: Callable[[str], object]) -> None:
    """Serve the dashboard until the process is interrupted.

    Args:
        path: The run folder.
        host: Address to listen at.
        port: 0 takes a free one.
        announce: Called with the address once it listens.

    Raises:
        RunError: As `app`, and if nothing can listen there.
    """
    application = app(path)
    try:
        server = make_server(host, port, application, handler_class=_Silent)
    except OSError as error:
        raise RunError(
            f"Nothing can listen at {host}:{port}: {error.strerror}.", "Give another --port."
        ) from error
    with server:
        announce(f"{path} at http://{host}:{server.server_port}/ (Ctrl-C ends it)")
        server.serve_forever()


class _Silent(WSGIRequestHandler):
    """Without a line on the terminal for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def note(folder: RunFolder, study: str) -> str:
    """What the page says of a study, in Markdown: its parameters, the choice, what to know."""
    if study == SEARCH:
        return _search_note(folder)
    if not is_study_of_weights(study):
        return f"Study `{study}` of {folder.path}."
    members = (folder.recorded("train") or {}).get("members", [])
    record = folder.recorded("fuse")
    lines = [
        f"Fusion weights of {folder.path}: each trial is an average of the members, and its "
        "values are those on validation.",
        "",
        *_parameters(study, members, record),
    ]
    if record is not None:
        chosen = record["methods"][record["chosen"]]
        values = ", ".join(f"{name} {value:.4f}" for name, value in chosen["values"].items())
        lines += ["", f"Chosen: **{record['chosen']}** with {values}."]
        weights = chosen["point"].get("weights")
        if weights:
            used = [(n, w) for n, w in zip(members, weights, strict=False) if w > 0.0]
            lines += ["", *(f"* {name}: {weight:.4f}" for name, weight in used)]
        lines += ["", *(f"Note: {text}" for text in record["notes"])]
    return "\n".join(lines).rstrip()


def _parameters(
    study: str, members: Sequence[str], record: Mapping[str, Any] | None
) -> list[str]:
    """A table of what the study's parameters are."""
    if study != study_name(LAYERS):
        rows = [f"| `w{i}` | {name} |" for i, name in enumerate(members)]
        return ["| parameter | weight of |", "|---|---|", *rows]
    found = {} if record is None else record["methods"].get(LAYERS, {}).get("details", {})
    ways = [
        f"{group}, towards {_mixture(members, goal)}"
        for group in found.get("groups", [])
        for goal in found.get("towards", [])
    ]
    rows = [f"| `t{i}` | {way} |" for i, way in enumerate(ways)]
    return ["| parameter | how far a group of layers goes |", "|---|---|", *rows]


def _mixture(members: Sequence[str], weights: Sequence[float]) -> str:
    used = [(n, w) for n, w in zip(members, weights, strict=False) if w > 0.0]
    if len(used) == 1:
        return used[0][0]
    return " + ".join(f"{weight:.2f} {name}" for name, weight in used)


def _search_note(folder: RunFolder) -> str:
    text = f"Hyper-parameters of {folder.path}: each trial is a training."
    record = folder.recorded("search")
    if record is None or record["trial"] is None:
        return text
    params = ", ".join(f"`{name}` {value}" for name, value in record["params"].items())
    return f"{text}\n\nBest: trial {record['trial']} with {params}."
