"""Our own step of Adam against torch.optim's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fraud_ray.training.optimizer import FusedAdam


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_its_steps_are_those_of_torch_and_go_on_from_a_checkpoint(decay: float) -> None:
    own, torchs, resumed = made(), made(), made()
    ours = FusedAdam(own.parameters(), decay)
    theirs = torch.optim.AdamW(torchs.parameters(), fused=True, weight_decay=decay)
    rows = torch.randn(64, 5)
    for step in range(1, 21):
        theirs.param_groups[0]["lr"] = 0.01 / step
        for network in (own, torchs):
            network.zero_grad()
            network(rows).square().mean().backward()
        if step == 20:
            resumed.load_state_dict(own.state_dict())
            again = FusedAdam(resumed.parameters(), decay)
            again.load_state_dict(ours.state_dict())
            resumed(rows).square().mean().backward()
            again.step(0.01 / step)
        ours.step(0.01 / step)
        theirs.step()
    for network in (own, resumed):
        for parameter, expected in zip(network.parameters(), torchs.parameters(), strict=True):
            assert torch.equal(parameter, expected)
