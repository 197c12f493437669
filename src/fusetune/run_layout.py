"""Where each stage of a run writes."""

from __future__ import annotations

from pathlib import Path


class RunLayout:
    """The files and folders of one run; see `docs/architecture.md` for the tree.

    Args:
        path: The run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def journal(self) -> Path:
        """Optuna's journal of both searches."""
        return self.path / "trials.journal"

    @property
    def members(self) -> Path:
        """One folder per member."""
        return self.path / "members"

    @property
    def converted(self) -> Path:
        """Copies as safetensors of checkpoints in other formats, by their digest."""
        return self.path / "converted"

    @property
    def base_member(self) -> Path:
        """The pretrained model as one more member."""
        return self.path / "base"

    @property
    def work(self) -> Path:
        """Checkpoints of a training that is not finished."""
        return self.path / "work"

    @property
    def kept(self) -> Path:
        """Members of the best full trials of the search, until the training takes them over."""
        return self.work / "kept"

    @property
    def evaluations(self) -> Path:
        """Per-example outcomes of every evaluated w."""
        return self.path / "evaluations"

    @property
    def methods(self) -> Path:
        """What each method chose."""
        return self.path / "methods"

    @property
    def fused(self) -> Path:
        """The fused model, an ordinary Hugging Face folder."""
        return self.path / "fused"

    @property
    def front(self) -> Path:
        """The points of the Pareto front, one small recipe each."""
        return self.path / "front"

    @property
    def logs(self) -> Path:
        """What integrations of `report_to` write as files, by training and by search."""
        return self.path / "logs"

    @property
    def starts(self) -> Path:
        """Starting points that were read from elsewhere, one file per stage."""
        return self.path / "starts"

    @property
    def results(self) -> Path:
        """Every method × split × metric."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """The one-page report."""
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        """What the terminal did not show."""
        return self.path / "run.log"

    def record(self, stage: str) -> Path:
        """What a complete stage recorded."""
        return self.path / "stages" / f"{stage}.json"
