"""A plain NextDiT, written from the description of the model to compare with: simple rather than fast.

Every token has modulations of its own, rotary positions are one complex table for all lengths, and key/value heads are
repeated before attention. It takes model.NextDiT's weights and gives its numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

BASE, SINUSOID = 10000.0, 256


class Reference(nn.Module):
    """Arguments and parameter names of model.NextDiT; forward for samples of one shape, fp32 without soft-capping."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        width, text = config["hidden_size"], config["caption_channels"]
        patch = 4 * config.get("in_channels", 16)
        self.size = width // config["num_heads"]
        self.x_embedder = nn.Linear(patch, width)
        self.t_embedder = Timesteps(min(width, 1024))
        self.y_embedder = nn.Sequential(nn.LayerNorm(text, eps=1e-6), nn.Linear(text, min(width, 1024)))
        self.layers = nn.ModuleList([Block(config) for _ in range(config["depth"])])
        self.final_layer = Final(width, patch)
        lengths = config.get("rotary_max_length_t", 16), config.get("rotary_max_length", 384)
        self.register_buffer("table", rotary_table(lengths[0], lengths[1], self.size), persistent=False)

    def forward(self, samples: Tensor, timesteps: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """(B, F, 16, h, w), timesteps (B,), (B, F) or full, text (B, L, Y) with mask (B, L) → velocity."""
        x = samples[:, None] if samples.ndim == 4 else samples
        f, _, h, w = x.shape[1:]
        while timesteps.ndim < 5:
            timesteps = timesteps[..., None]
        t = patchify(timesteps.expand_as(x)).mean(-1)
        weight = text_mask.to(text.dtype)[..., None]
        pooled = (text * weight).sum(1) / (weight.sum(1) + 1e-8)
        c = self.t_embedder(t) + self.y_embedder(pooled)[:, None]
        rotation = self.table[:f, : h // 2, : w // 2].reshape(1, -1, 1, self.size // 2)
        tokens = self.x_embedder(patchify(x))
        for layer in self.layers:
            tokens = layer(tokens, text, text_mask.bool(), c, rotation)
        tokens = self.final_layer(tokens, c)
        out = rearrange(tokens, "B (F r c) (p q C) -> B F C (r p) (c q)", F=f, r=h // 2, c=w // 2, p=2, q=2)
        return out.view_as(samples)


def patchify(x: Tensor) -> Tensor:
    return rearrange(x, "B F C (r p) (c q) -> B (F r c) (p q C)", p=2, q=2)


def rotary_table(frames: int, side: int, size: int) -> Tensor:
    """(frames, side, side, size / 2) complex rotations, a third of the channels an axis."""
    frequencies = BASE ** (-torch.arange(0, size, 6).float() / size)
    turns = [
        torch.polar(torch.ones(1), torch.outer(torch.arange(n).float(), frequencies)) for n in (frames, side, side)
    ]
    parts = [
        turns[0][:, None, None].expand(frames, side, side, -1),
        turns[1][None, :, None].expand(frames, side, side, -1),
        turns[2][None, None].expand(frames, side, side, -1),
    ]
    return torch.cat(parts, -1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x (B, N, A, d): adjacent pairs of channels are complex numbers."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).type_as(x)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class Timesteps(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = SINUSOID // 2
        angles = t[..., None] * torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device) / half)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


class Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, text = config["hidden_size"], config["caption_channels"]
        self.heads, self.kv_heads = config["num_heads"], config.get("num_kv_heads") or config["num_heads"]
        self.size = width // self.heads
        small = self.kv_heads * self.size
        self.wq, self.wk, self.wv = (nn.Linear(width, out, bias=False) for out in (width, small, small))
        self.wk_y, self.wv_y = (nn.Linear(text, small, bias=False) for _ in range(2))
        self.wo = nn.Linear(width, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(self.heads))
        norm = config.get("qk_norm", False)
        self.q_norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.k_norm = nn.LayerNorm(small) if norm else nn.Identity()
        self.ky_norm = nn.LayerNorm(small, eps=1e-6) if norm else nn.Identity()

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, rotation: Tensor) -> Tensor:
        copies = self.heads // self.kv_heads
        q, k, v, k_y, v_y = (
            z.unflatten(-1, (-1, self.size))
            for z in (
                self.q_norm(self.wq(x)),
                self.k_norm(self.wk(x)),
                self.wv(x),
                self.ky_norm(self.wk_y(y)),
                self.wv_y(y),
            )
        )
        q, k = rotate(q, rotation), rotate(k, rotation)
        k, v = (z.repeat_interleave(copies, 2) for z in (k, v))
        k_y, v_y = (z.repeat(1, 1, copies, 1) for z in (k_y, v_y))
        q, k, v, k_y, v_y = (z.transpose(1, 2) for z in (q, k, v, k_y, v_y))
        image = F.scaled_dot_product_attention(q, k, v)
        text_mask = mask[:, None, None].expand(-1, self.heads, q.shape[2], -1)
        text = F.scaled_dot_product_attention(q, k_y, v_y, attn_mask=text_mask)
        mixed = image + text * self.gate.tanh()[:, None, None]
        return self.wo(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, config: Any) -> None:
        super().__init__()
        hidden = int(2 * 4 * width / 3)
        if config.get("ffn_dim_multiplier") is not None:
            hidden = int(config["ffn_dim_multiplier"] * hidden)
        multiple = config.get("multiple_of", 256)
        hidden = multiple * ((hidden + multiple - 1) // multiple)
        self.w1, self.w3 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config.get("norm_eps", 1e-5)
        self.attention = Attention(config)
        self.feed_forward = FeedForward(width, config)
        for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
            self.add_module(name, RMSNorm(width, eps))
        self.attention_y_norm = RMSNorm(config["caption_channels"], eps)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(min(width, 1024), 4 * width))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, c: Tensor, rotation: Tensor) -> Tensor:
        scale_msa, gate_msa, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(4, -1)
        attended = self.attention(self.attention_norm1(x) * (1 + scale_msa), self.attention_y_norm(y), mask, rotation)
        x = x + gate_msa.tanh() * self.attention_norm2(attended)
        return x + gate_mlp.tanh() * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * (1 + scale_mlp)))


class Final(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(min(width, 1024), width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(self.norm_final(x) * (1 + self.adaLN_modulation(c)))
