"""What a trial of the search costs on a light variant, with and without kept activations.

    python -m benchmarks.search --json

A trial is what `fusetune search` does: build the model, train, validate as it goes. Full and
light trials alternate in one process; ratios compare medians, `*_cpu` those of processor time,
which other work on the machine hardly touches.

half, three_quarters    a light trial with the prefix cache over a full one, with half and three
                        quarters of the layers frozen, 6 and 9 of 12 (MiniLM's, each twice)
*_uncached              the same without the cache
cache_seconds_*         what making the cache took: once per search, not in a trial
difference_*            the largest between validation losses of cached and uncached trials
rank_correlation_*      Spearman's, of validation losses with those of full trials, over rates
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from scipy.stats import spearmanr
from transformers import AutoTokenizer, BertConfig, BertModel

from fusetune.models.packaged import locate
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.pipeline.light import trial_parts
from fusetune.recipe_file import parse
from fusetune.run import RunFolder
from fusetune.tasks import demo
from fusetune.training.trajectory import train
from fusetune.training.watch import ValidationWatch

RECIPE = """
seed: 41
task: {{data: {data}, text: [premise, hypothesis], metrics: [accuracy]}}
model: {{name: {model}, device: {device}, precision: {precision}}}
search:
  trials: 1
  epochs: 1
  variant: {variant}
  prefix_cache: {cache}
  space: {{learning_rate: {{low: 1.0e-5, high: 1.0e-3, log: true}}}}
train:
  arguments: {{per_device_train_batch_size: 16, train_sampling_strategy: group_by_length}}
"""
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)


def deep_model(folder: Path, layers: int) -> Path:
    """A model of MiniLM's width with more layers: MiniLM's, repeated."""
    source = locate("minilm")
    small = BertModel.from_pretrained(source)
    config = BertConfig.from_pretrained(source, num_hidden_layers=layers)
    deep = BertModel(config)
    deep.embeddings.load_state_dict(small.embeddings.state_dict())
    for i, layer in enumerate(deep.encoder.layer):
        layer.load_state_dict(small.encoder.layer[i * 6 // layers].state_dict())
    deep.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


class Trials:
    """Trials of one recipe; what its trials share is made first.

    Attributes:
        preparing: Seconds that tokenising and the cache took.
    """

    def __init__(self, recipe: str, folder: Path) -> None:
        self.context = Context(parse(recipe), RunFolder(folder), Display(quiet=True))
        _ = self.context.train_data, self.context.scorer("validation")
        started = time.perf_counter()
        self.parts = trial_parts(self.context)
        self.preparing = time.perf_counter() - started
        self.folder = folder

    def run(self, rate: float) -> tuple[float, float, float]:
        """Seconds, processor seconds and validation loss of one trial."""
        watch = ValidationWatch(self.parts.score, 3, lambda step, value: False)
        started, processor = time.perf_counter(), time.process_time()
        train(
            self.parts.make_model,
            self.parts.data,
            self.parts.collate,
            self.folder / "checkpoints",
            self.context.training_arguments({"learning_rate": rate}),
            epochs=1,
            seed=41,
            device=self.context.device.type,
            precision=self.context.precision,
            callbacks=[watch],
            keep_checkpoints=False,
        )
        seconds = time.perf_counter() - started
        processor = time.process_time() - processor
        return seconds, processor, watch.history[-1][1].values["loss"]


def measure(folder: Path, options: argparse.Namespace, layers: int) -> dict[str, float]:
    """Ratios of medians, for a model of `layers` layers."""
    model = Path(locate("minilm")) if layers == 6 else deep_model(folder / "deep", layers)
    demo.write(folder / "data", 0, train=options.rows, validation=options.rows // 5)
    kinds: dict[str, Trials] = {}

    def add(name: str, variant: str, cache: str) -> None:
        recipe = RECIPE.format(
            data=folder / "data",
            model=model,
            device=options.device,
            precision=options.precision,
            variant=variant,
            cache=cache,
        )
        kinds[name] = Trials(recipe, folder / name)

    add("full", "full", "false")
    for name, frozen in (("half", layers // 2), ("three_quarters", layers * 3 // 4)):
        add(name, f"{{freeze_layers: {frozen}}}", "100")
        add(f"{name}_uncached", f"{{freeze_layers: {frozen}}}", "false")
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    processor: dict[str, list[float]] = {name: [] for name in kinds}
    losses: dict[str, list[float]] = {name: [] for name in kinds}
    for kind in kinds.values():
        kind.run(RATES[0])  # warms up
    for i in range(options.repeats):
        for name, kind in kinds.items():
            took, worked, loss = kind.run(RATES[i % len(RATES)])
            seconds[name].append(took)
            processor[name].append(worked)
            losses[name].append(loss)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    whole = statistics.median(processor["full"])
    found = {f"seconds_{name}": value for name, value in medians.items()}
    for name in list(kinds)[1:]:
        found[name] = medians[name] / medians["full"]
        found[f"{name}_cpu"] = statistics.median(processor[name]) / whole
        found[f"rank_correlation_{name}"] = float(
            spearmanr(losses[name], losses["full"]).statistic
        )
        if f"{name}_uncached" in kinds:
            found[f"cache_seconds_{name}"] = kinds[name].preparing
            pairs = zip(losses[name], losses[f"{name}_uncached"], strict=True)
            found[f"difference_{name}"] = max(abs(a - b) for a, b in pairs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=320, help="training rows of a trial")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options, options.layers)
    found |= {"layers": options.layers, "threads": torch.get_num_threads()}
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:40} {value:.4g}")


if __name__ == "__main__":
    main()
