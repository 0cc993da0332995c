"""The parts of NextDiT around attention: embeddings, norms, feed-forward, block, final layer. Names as published."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.attention import Attention
from model.layout import Layout, TokenLayout, mark_sizes

SINUSOID = 256  # width of the timestep's sinusoid
MAX_PERIOD = 10000.0


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm, computed in float32, its result times a factor for each row of the layout where given."""

    def forward(self, x: Tensor, factor: Tensor | None = None, layout: Layout | TokenLayout | None = None) -> Tensor:
        """x (N, D), factor (rows, D) → (N, D)."""
        if factor is None or layout is None:
            return self._normalise(x[None], self.weight.float().view(1, 1, -1))[0]
        # Weight and factor meet while they are a row each, not once for every token.
        return layout.per_row(x, self.weight.float() * factor.float(), self._normalise)

    def _normalise(self, x: Tensor, factor: Tensor) -> Tensor:
        if x.is_cuda or torch.compiler.is_compiling():
            # A compiler fuses this, and itself chooses what to keep for the gradient.
            x32 = x.float()
            return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps) * factor).to(x.dtype)
        result: Tensor = _Normalise.apply(x, factor, self.eps)
        return result


class _Normalise(torch.autograd.Function):
    """x (f, t, D) / rms(x) · factor (f, 1, D), keeping no float32 copies of x for the gradient."""

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
        self.compiled = False

    def forward(self, x: Tensor, y: Tensor, c: Tensor, layout: Layout | TokenLayout, soft_cap: float | None) -> Tensor:
        """x (N, D), y (T, Y), c (rows, min(D, 1024)) → (N, D)."""
        if self.compiled and isinstance(layout, TokenLayout) and not torch.compiler.is_compiling():
            # Hooks (of FSDP, of checkpointing) stay outside: they are around the call of the module. What they cast is
            # a new tensor, so it is marked here.
            return compiled_block()(self, *mark_sizes(x, y, c), layout, soft_cap)
        return self.compute(x, y, c, layout, soft_cap)

    def compute(self, x: Tensor, y: Tensor, c: Tensor, layout: Layout | TokenLayout, soft_cap: float | None) -> Tensor:
        """What forward computes, and what is compiled."""
        scale_msa, gate_msa, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(4, dim=-1)
        h = self.attention_norm1(x, 1 + scale_msa, layout)
        h = self.attention(h, self.attention_y_norm(y), layout, soft_cap)
        x = x + self.attention_norm2(h, gate_msa.tanh(), layout)
        h = self.feed_forward(self.ffn_norm1(x, 1 + scale_mlp, layout))
        return x + self.ffn_norm2(h, gate_mlp.tanh(), layout)


@cache
def compiled_block() -> Callable[..., Tensor]:
    """Block.compute as one graph for all blocks and packs; an error where it is none."""
    from torch._inductor import config

    # Blocks end where gradients do, so there is nothing left to cut for DDP, which could not cut FlexAttention either.
    torch._dynamo.config.optimize_ddp = False
    # This fusion asks how long the sequence is, and compiles again for three ranges of it.
    asks = hasattr(config.triton, "mix_order_reduction")
    options: dict[str, str | int | bool | Callable[..., object]] = {"triton.mix_order_reduction": False} if asks else {}
    return torch.compile(Block.compute, fullgraph=True, options=options)


class FinalLayer(nn.Module):
    """Norm, scale, and the projection to the pixels of a patch."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(min(width, 1024), width))

    def forward(self, x: Tensor, c: Tensor, layout: Layout | TokenLayout) -> Tensor:
        """x (N, D), c (rows, min(D, 1024)) → (N, p·p·C)."""
        return self.linear(layout.per_row(self.norm_final(x), 1 + self.adaLN_modulation(c), torch.mul))
