"""The parts of NextDiT around attention: embeddings, norms, feed-forward. Names as published.

N tokens, D width, M noise levels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.layout import Layout, TokenLayout

SINUSOID = 256  # width of the timestep's sinusoid
MAX_PERIOD = 10000.0


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm in float32, then times a factor for each noise level where one is given."""

    def forward(self, x: Tensor, factor: Tensor | None = None, layout: Layout | TokenLayout | None = None) -> Tensor:
        """x (N, D), factor (M, D) → (N, D)."""
        if factor is None or layout is None:
            return self._normalize(x[None], self.weight.float().view(1, 1, -1))[0]
        # Weight and factor are multiplied once for each level, not once for every token.
        return layout.per_level(x, self.weight.float() * factor.float(), self._normalize)

    def _normalize(self, x: Tensor, factor: Tensor) -> Tensor:
        if x.is_cuda or torch.compiler.is_compiling():
            # The compiler fuses this, and chooses itself what to save for the gradient.
            x32 = x.float()
            return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps) * factor).to(x.dtype)
        result: Tensor = _Normalize.apply(x, factor, self.eps)
        return result


class _Normalize(torch.autograd.Function):
    """x (m, t, D) / rms(x) · factor (m, 1, D), without saving a float32 copy of x for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        square = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square()
        scale = torch.rsqrt(square / x.shape[-1] + eps)
        ctx.save_for_backward(x, factor, scale)
        return (x32 * scale).mul_(factor).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, factor, scale = ctx.saved_tensors
        x32, grad32 = x.float(), grad.float()
        with torch.autocast(x.device.type, enabled=False):
            product = grad32 * x32
            of_factor = scale.mT @ product
            slope = product @ factor.mT * scale**3 / -x.shape[-1]
        return (grad32 * factor).mul_(scale).addcmul_(x32, slope).to(x.dtype), of_factor, None


class TimestepEmbedder(nn.Module):
    """Timesteps 0…1000 → vectors: sinusoid (cosines first), then Linear-SiLU-Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        """(M,) → (M, width)."""
        half = SINUSOID // 2
        exponents = torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
        angles = timesteps.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.mlp[0].weight.dtype))


class FeedForward(nn.Module):
    """SwiGLU: w2(SiLU(w1 x) · w3 x)."""

    def __init__(self, width: int, multiple_of: int, multiplier: float | None) -> None:
        super().__init__()
        hidden = int(2 * 4 * width / 3)
        hidden = int(multiplier * hidden) if multiplier is not None else hidden
        hidden = -(-hidden // multiple_of) * multiple_of
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        nn.init.xavier_uniform_(self.w1.weight)
        nn.init.zeros_(self.w2.weight)
        nn.init.xavier_uniform_(self.w3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, D) → (N, D)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))
