"""AdamW with moments in 8 bits: what it steps, what it keeps."""

from __future__ import annotations

import pytest
import torch

from training.adamw8bit import BLOCK, AdamW8bit

SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}


@pytest.mark.parametrize(("shape", "decades"), [((64, 300), 2), ((300, 16), 2), ((8, 4, 256), 2), ((64, 300), 5)])
def test_steps_are_those_of_adamw_but_for_rounding(shape: tuple[int, ...], decades: int) -> None:
    """Rows longer than a block, shorter ones, and whole ones; gradients of very different sizes in a block."""
    torch.manual_seed(0)
    start, vector = torch.randn(shape), torch.randn(50)
    ours, theirs = ([torch.nn.Parameter(z.clone()) for z in (start, vector)] for _ in range(2))
    groups = [
        [{"params": [one[0]], "weight_decay": 0.1}, {"params": [one[1]], "weight_decay": 0.0}] for one in (ours, theirs)
    ]
    optimizers = AdamW8bit(groups[0], **SETTINGS), torch.optim.AdamW(groups[1], **SETTINGS)
    sizes = 10.0 ** -(decades * torch.rand(shape))
    for _ in range(60):
        gradients = [sizes * (torch.randn(shape) + 0.5), torch.randn(50)]
        for parameters in (ours, theirs):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs[0] - start).norm()
    assert (ours[0] - theirs[0]).norm() < (0.1 if decades < 3 else 0.5) * moved
    assert (ours[0] - start).abs().max() < 1.5 * (theirs[0] - start).abs().max(), "no step is out of all proportion"
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-6, rtol=1e-5)
    state = optimizers[0].state[ours[0]]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.uint8
    assert state["exp_avg_scale"].shape == (*shape[:-1], -(-shape[-1] // BLOCK))
    assert optimizers[0].state[ours[1]]["exp_avg"].dtype == torch.float32, "too few weights"
    kept = sum(state[name].nbytes for name in state)
    assert kept < (0.3 if shape[-1] >= BLOCK else 0.45) * 8 * ours[0].numel()


def test_weights_without_gradients_stay() -> None:
    weight = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = AdamW8bit([{"params": [weight], "weight_decay": 0.1}], **SETTINGS)
    optimizer.step()
    assert not optimizer.state and bool((weight == 1).all())
    weight.grad = torch.zeros(64, 64)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((64, 64), 1 - 1e-4))
