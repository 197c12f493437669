"""One task with one seed: its recipe, its rows, and where everything of it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.protocols import records, settings
from fusetune.errors import RunError
from fusetune.pipeline.comparison_plan import wanted_rows
from fusetune.recipe import Recipe
from fusetune.report.comparison import BASE

LANDSCAPES = "landscapes"


@dataclass(frozen=True, slots=True)
class Job:
    """One task with one seed.

    Attributes:
        protocol: "a" or "b".
        task: As in the settings.
        seed: Of everything.
        attempt: Name of a try, or "".
        scale: "quick" or "full".
        methods: Rows; `finetune` is always made, but for tries of the search.
        recipe: With the protocol's settings.
        overrides: Those, as text.
        data: The folder of the data sets.
        precision: That all is trained and evaluated in, at the quick scale.
    """

    protocol: str
    task: str
    seed: int
    attempt: str
    scale: str
    methods: tuple[str, ...]
    recipe: Recipe
    overrides: tuple[str, ...]
    data: Path
    precision: str = settings.PRECISIONS[0]

    @classmethod
    def of(
        cls,
        protocol: str,
        task: str,
        seed: int,
        methods: Sequence[str],
        data: Path,
        scale: str,
        attempt: str = "",
        precision: str = settings.PRECISIONS[0],
    ) -> Job:
        """With the settings of the protocol.

        Raises:
            RecipeError: If a name is not known.
        """
        recipe, overrides = settings.recipe(
            task, protocol, data, scale=scale, attempt=attempt, precision=precision
        )
        base = [] if attempt in settings.OF_SEARCH else [BASE]
        rows = wanted_rows(recipe, [*base, *methods], lambda _: None)
        kept = settings.without_place(overrides)
        return cls(
            protocol, task, seed, attempt, scale, tuple(rows), recipe, kept, data, precision
        )

    def recipe_of(self, attempt: str) -> Recipe:
        """What a try of the same task has, or the protocol's own settings for ""."""
        made, _ = settings.recipe(
            self.task,
            self.protocol,
            self.data,
            scale=self.scale,
            attempt=attempt,
            precision=self.precision,
        )
        return made

    def out(self, runs: Path) -> Path:
        """The folder of the comparison."""
        name = f"{self.task}+{self.attempt}" if self.attempt else self.task
        return runs / self.protocol / name

    def seed_folder(self, runs: Path) -> Path:
        """The folder of its runs."""
        return self.out(runs) / f"seed-{self.seed}"

    def landscape(self, results: Path, run: str) -> Path:
        """The file with what the members of one of its runs say."""
        parts = (self.protocol, self.task, str(self.seed), run, self.attempt)
        return results / LANDSCAPES / f"{'-'.join(filter(None, parts))}.npz"

    @property
    def command(self) -> str:
        """The command that makes it."""
        attempt = f" --tries {self.attempt}" if self.attempt else ""
        scale = "" if self.scale == "quick" else f" --scale {self.scale}"
        precision = settings.precision_option(self.precision)
        return (
            f"python -m benchmarks.quality --protocol {self.protocol} --tasks {self.task} "
            f"--seeds {self.seed} --methods {','.join(self.methods)}{attempt}{scale}{precision}"
        )

    def missing(self, results: Path) -> list[str]:
        """The rows that have no record yet.

        Raises:
            RunError: If a record was made with other settings.
        """
        absent = []
        for row in self.methods:
            file = records.path(results, self.protocol, self.attempt, self.task, self.seed, row)
            if not file.exists():
                absent.append(row)
                continue
            found = records.read(file)
            if (found.settings, found.scale) != (self.overrides, self.scale):
                raise RunError(
                    f"{file} was made with other settings: {', '.join(found.settings)}.",
                    "Give another folder with --results, or delete the task's records.",
                )
        return absent
