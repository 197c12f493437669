from __future__ import annotations

import pytest
import torch
from torch import nn

from fusetune.members.gradient import differentiable, part_of_gradient


def test_the_model_is_as_it_was_afterwards() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 1)).train()
    model[0].requires_grad_(False)

    def work() -> None:
        with differentiable(model):
            assert not model.training
            assert all(p.requires_grad for p in model.parameters())
            model(torch.ones(1, 2)).sum().backward()
            assert model[0].weight.grad is not None
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        work()
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_parts_are_counted_in_row_major_order() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    other = nn.Parameter(torch.zeros(2, 3))
    assert part_of_gradient([weight, other], slice(1, 4)) is None
    weight.grad = torch.arange(6.0).view(2, 3)
    assert part_of_gradient([weight, other], slice(1, 4)).tolist() == [1.0, 2.0, 3.0]
    weight.grad = torch.arange(6.0).view(3, 2).t()
    assert part_of_gradient([weight], slice(1, 4)).tolist() == [2.0, 4.0, 1.0]
    other.grad = torch.ones(2, 3)
    assert part_of_gradient([weight, other], slice(1, 4)).tolist() == [3.0, 5.0, 2.0]
