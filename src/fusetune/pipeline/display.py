"""What the terminal shows while a run goes on, and what goes to the log file instead."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from fusetune.redaction import printable, shown

logger = logging.getLogger("fusetune")

# Libraries whose warnings belong into the log file and not between progress bars.
_NOISY = ("transformers", "datasets", "optuna", "accelerate", "botorch", "py.warnings")


class Bar:
    """One progress bar.

    Args:
        progress: Where it is drawn; None draws nothing.
        task: Its id there.
    """

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress = progress
        self._task = task

    def update(
        self, completed: float, total: float | None = None, text: str | None = None
    ) -> None:
        """Move the bar; `text` stands behind it, as with the best values so far."""
        if self._progress is None or self._task is None:
            return
        self._progress.update(self._task, completed=completed, total=total)
        if text is not None:
            self._progress.update(self._task, text=printable(text))


class _Formatter(logging.Formatter):
    """Lines without secrets, those of a traceback included, and without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


class _Inert(RenderHook):
    """Writes out control characters in all that is printed, whatever it came from."""

    def process_renderables(
        self, renderables: list[ConsoleRenderable]
    ) -> list[ConsoleRenderable]:
        """The same, without what would act on the terminal; rich's own codes stay."""
        return [_InertText(each) for each in renderables]


class _InertText:
    """One renderable of `_Inert`."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._inner, options):
            own = segment.control
            yield segment if own else Segment(printable(segment.text), segment.style)


class Display:
    """Progress bars and lines of one run.

    Args:
        quiet: Show nothing but errors.
        verbose: Show what otherwise only the log file gets.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.console = Console(quiet=quiet, highlight=False)
        self.console.push_render_hook(_Inert())

    def say(self, text: str) -> None:
        """A line for the user, in the log file too."""
        text = shown(text)
        logger.info(text)
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A warning for the user."""
        text = shown(text)
        logger.warning(text)
        self.console.print(f"Warning: {text}", style="yellow", markup=False)

    @contextmanager
    def bar(self, label: str, total: float) -> Iterator[Bar]:
        """A progress bar with count, remaining time, and a text behind it."""
        if self.quiet:
            yield Bar(None, None)
            return
        progress = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[text]}"),
            console=self.console,
        )
        with progress:
            yield Bar(progress, progress.add_task(label, total=total, text=""))


@contextmanager
def log_to(path: Path, *, verbose: bool) -> Iterator[None]:
    """Send fusetune's log, and what libraries would print, to a file.

    Args:
        path: The log file; lines are appended.
        verbose: Show fusetune's log on standard error as well.
    """
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    previous = {}
    for name in ("fusetune", *_NOISY):
        chosen = logging.getLogger(name)
        previous[name] = (chosen.handlers[:], chosen.propagate, chosen.level)
        chosen.handlers = [handler]
        chosen.propagate = False
        if name == "fusetune":
            chosen.setLevel(logging.DEBUG)
            if verbose:
                shown_too = logging.StreamHandler()
                shown_too.setFormatter(_Formatter("%(message)s"))
                chosen.addHandler(shown_too)
    silence_library_bars()
    try:
        yield
    finally:
        for name, (handlers, propagate, level) in previous.items():
            chosen = logging.getLogger(name)
            chosen.handlers, chosen.propagate = handlers, propagate
            chosen.setLevel(level)
        logging.captureWarnings(False)
        handler.close()


def silence_library_bars() -> None:
    """Progress bars of loading and reading would run through ours."""
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)
