"""Fuse the checkpoints of a plain PyTorch training loop: handwritten digits, no Transformers.

    pip install fusetune[demo]
    python examples/digits.py

Twenty seconds on a CPU. The data come with scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fusetune


def make_model() -> nn.Module:
    """A small convolutional network with batch normalisation."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


def splits(seed: int = 0) -> tuple[tuple[Tensor, Tensor], ...]:
    """Train, validation and test: images `n x 8 x 8` and labels `n`."""
    images, labels = load_digits(return_X_y=True)
    first, rest = train_test_split(range(len(labels)), train_size=400, random_state=seed)
    second, third = train_test_split(rest, train_size=600, random_state=seed)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 8, 8) / 16
    y = torch.tensor(labels)
    return tuple((x[part], y[part]) for part in (first, second, third))


def measure(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss and accuracy over a whole split."""
    with torch.no_grad():
        logits = model(images)
    right = (logits.argmax(1) == labels).float().mean()
    return {"loss": cross_entropy(logits, labels).item(), "accuracy": right.item()}


def train(model: nn.Module, images: Tensor, labels: Tensor, folder: Path, steps: int) -> None:
    """A training loop as anybody writes it; one line of it is fusetune's."""
    collector = fusetune.MemberCollector(folder, members=8, total_steps=steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(labels), (16,))
        loss = cross_entropy(model(images[batch] + 0.3 * torch.randn(16, 8, 8)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        collector.step(model)


def main() -> None:
    """Train, fuse, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.manual_seed(0)
    training, validation, test = splits()
    train(make_model(), *training, options.out / "members", options.steps)

    result = fusetune.fuse(
        options.out / "members",
        evaluate=lambda model: measure(model, *validation),
        objectives=["loss", "accuracy:maximize"],
        model_init=make_model,
        callbacks=[lambda step: print(f"{step.number}/{step.budget}", end="\r")],
    )
    result.save(options.out / "fused")
    result.report(options.out / "report.html", title="Digits")
    for name, candidate in result.methods.items():
        on_test = measure(result.model(candidate), *test)
        chosen = "  <- chosen" if name == result.chosen else ""
        print(
            f"{name:<16} validation {candidate.values['accuracy']:.4f}"
            f"  test {on_test['accuracy']:.4f}{chosen}"
        )
    print(f"Report: {options.out / 'report.html'}")


if __name__ == "__main__":
    main()
