"""The parts of NextDiT around attention: embeddings, norms, feed-forward, block, final layer. Names as published."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention
from model.layout import Layout

SINUSOID = 256  # width of the timestep's sinusoid
MAX_PERIOD = 10000.0


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


class TimestepEmbedder(nn.Module):
    """Timesteps 0…1000 → vectors: sinusoid (cosines first), then Linear-SiLU-Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        """(f,) → (f, width)."""
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
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale)


def _gated(x: Tensor, gate: Tensor) -> Tensor:
    return x * gate


class Block(nn.Module):
    """Attention and feed-forward, each between two norms, scaled and gated by the frame's timestep and text."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        multiple_of: int,
        multiplier: float | None,
        eps: float,
        qk_norm: bool,
        text_width: int,
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, kv_heads, text_width, qk_norm)
        self.feed_forward = FeedForward(width, multiple_of, multiplier)
        self.attention_norm1 = RMSNorm(width, eps)
        self.attention_norm2 = RMSNorm(width, eps)
        self.ffn_norm1 = RMSNorm(width, eps)
        self.ffn_norm2 = RMSNorm(width, eps)
        self.attention_y_norm = RMSNorm(text_width, eps)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(min(width, 1024), 4 * width))

    def forward(self, x: Tensor, y: Tensor, c: Tensor, layout: Layout, soft_cap: float | None) -> Tensor:
        """x (N, D), y (T, Y), c (rows, min(D, 1024)) → (N, D)."""
        scale_msa, gate_msa, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(4, dim=-1)
        h = layout.per_row(self.attention_norm1(x), scale_msa, _scaled)
        h = self.attention_norm2(self.attention(h, self.attention_y_norm(y), layout, soft_cap))
        x = x + layout.per_row(h, gate_msa.tanh(), _gated)
        h = layout.per_row(self.ffn_norm1(x), scale_mlp, _scaled)
        h = self.ffn_norm2(self.feed_forward(h))
        return x + layout.per_row(h, gate_mlp.tanh(), _gated)


class FinalLayer(nn.Module):
    """Norm, scale, and the projection to the pixels of a patch."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(min(width, 1024), width))

    def forward(self, x: Tensor, c: Tensor, layout: Layout) -> Tensor:
        """x (N, D), c (rows, min(D, 1024)) → (N, p·p·C)."""
        return self.linear(layout.per_row(self.norm_final(x), self.adaLN_modulation(c), _scaled))
