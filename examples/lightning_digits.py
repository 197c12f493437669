"""Members from a Lightning training: a small image classifier on scikit-learn's digits.

Run it with `python examples/lightning_digits.py --out runs/lightning`.
Needs `pip install lightning`.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fusetune
from fusetune.integrations.lightning import MemberCollector, evaluate_with, network


class Digits(lightning.LightningModule):
    """A network and how it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        return cross_entropy(self.model(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Loss and accuracy; Lightning takes their means over the split."""
        images, labels = batch
        logits = self.model(images)
        self.log("loss", cross_entropy(logits, labels))
        self.log("accuracy", (logits.argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main() -> None:
    """Train, fuse, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/lightning"))
    parser.add_argument("--steps", type=int, default=150)
    out, steps = vars(parser.parse_args()).values()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    found = load_digits()
    images = torch.tensor(found.images / 16.0, dtype=torch.float32)
    data = TensorDataset(images, torch.tensor(found.target))
    training, validation = torch.utils.data.random_split(data, [1400, 397])
    module = Digits()
    validating = DataLoader(validation, batch_size=397)

    collector = MemberCollector(out / "members", members=6)  # 1
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[collector],  # 2
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(training, batch_size=32, shuffle=True))
    result = fusetune.fuse(  # 3
        out / "members",
        evaluate=evaluate_with(trainer, module, dataloaders=validating),
        objectives=["loss", "accuracy:maximize"],
        model_init=lambda: network(module),
    )
    result.save(out / "fused")  # 4
    result.report(out / "report.html", title="Digits")  # 5
    print(f"{result.chosen}: {dict(result.values)}")


if __name__ == "__main__":
    main()
