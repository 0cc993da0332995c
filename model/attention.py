"""Attention inside each sample of a pack, and from its image tokens to its text.

N image tokens of all samples, T text tokens of all samples, D width, A heads, K key/value heads, d = D/A, Y text width;
a group is g consecutive samples of n tokens each, whose texts have at most L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from model.inputs import InputError
from model.layout import BLOCK, Layout, TokenLayout, mark_sizes
from model.rotary import rotate

SOFT_CAP = 30.0  # of logits between image tokens


class Attention(nn.Module):
    """Self-attention with rotary positions plus gated attention to text, sharing the queries (docs/model.md)."""

    def __init__(self, width: int, heads: int, kv_heads: int, text_width: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        kv_width = kv_heads * self.size
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, kv_width, bias=False)
        self.wv = nn.Linear(width, kv_width, bias=False)
        self.wk_y = nn.Linear(text_width, kv_width, bias=False)
        self.wv_y = nn.Linear(text_width, kv_width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(heads))
        self.q_norm: nn.Module = nn.LayerNorm(width) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(kv_width) if qk_norm else nn.Identity()
        self.ky_norm: nn.Module = nn.LayerNorm(kv_width, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, y: Tensor, layout: Layout | TokenLayout, soft_cap: float | None) -> Tensor:
        """x (N, D), y (T, Y) → (N, D)."""
        q = rearrange(self.q_norm(self.wq(x)), "N (A d) -> N A d", d=self.size)
        k = rearrange(self.k_norm(self.wk(x)), "N (K d) -> N K d", d=self.size)
        v = rearrange(self.wv(x), "N (K d) -> N K d", d=self.size)
        k_y = rearrange(self.ky_norm(self.wk_y(y)), "T (K d) -> T K d", d=self.size)
        v_y = rearrange(self.wv_y(y), "T (K d) -> T K d", d=self.size)
        # Under autocast norms give float32; attention wants one type.
        q, k = (rotate(z, layout.cos, layout.sin).to(v.dtype) for z in (q, k))
        k_y = k_y.to(v_y.dtype)
        # Self-attention repeats each key head for its neighbors, attention to text tiles the heads (docs/model.md).
        copies = self.heads // self.kv_heads
        k, v = (repeat(z, "N K d -> N (K copies) d", copies=copies) for z in (k, v))
        k_y, v_y = (repeat(z, "T K d -> T (copies K) d", copies=copies) for z in (k_y, v_y))
        if isinstance(layout, TokenLayout):
            attend = _attend_tokens if not q.is_cuda or torch.compiler.is_compiling() else _attend_compiled
            image, text = attend(q, k, v, k_y, v_y, layout, soft_cap)
        else:
            image, text = _attend_groups(q, k, v, k_y, v_y, layout, soft_cap)
        mixed = torch.addcmul(image, text, self.gate.tanh().to(text.dtype)[:, None])
        return self.wo(rearrange(mixed, "N A d -> N (A d)"))


def _attend_groups(
    q: Tensor, k: Tensor, v: Tensor, k_y: Tensor, v_y: Tensor, layout: Layout, soft_cap: float | None
) -> tuple[Tensor, Tensor]:
    """Batched attention over each group of samples of one shape: exact, and no token attends to padding."""
    images, texts = [], []
    parts = zip(*map(layout.split, (q, k, v)), *map(layout.split_text, (k_y, v_y)), strict=True)
    for group, (*image_parts, text_keys, text_values) in zip(layout.groups, parts, strict=True):
        queries, keys, values = (rearrange(z, "(g n) A d -> g A n d", g=group.samples) for z in image_parts)
        (text_keys, mask), (text_values, _) = group.texts(text_keys), group.texts(text_values)
        text_keys, text_values = (rearrange(z, "g L A d -> g A L d") for z in (text_keys, text_values))
        if mask is not None:
            mask = rearrange(mask.bool(), "g L -> g 1 1 L")
        if soft_cap:
            image = _soft_capped_attention(queries, keys, values, soft_cap)
        else:
            image = F.scaled_dot_product_attention(queries, keys, values)
        text = F.scaled_dot_product_attention(queries, text_keys, text_values, attn_mask=mask)
        images.append(rearrange(image, "g A n d -> (g n) A d"))
        texts.append(rearrange(text, "g A n d -> (g n) A d"))
    if len(images) == 1:
        return images[0], texts[0]
    return torch.cat(images), torch.cat(texts)


def _soft_capped_attention(q: Tensor, k: Tensor, v: Tensor, soft_cap: float) -> Tensor:
    """Attention with logits soft_cap · tanh(logits / soft_cap); q, k, v (g, A, n, d)."""
    logits = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    return (soft_cap * torch.tanh(logits / soft_cap)).softmax(-1).to(v.dtype) @ v


def _attend_tokens(
    q: Tensor, k: Tensor, v: Tensor, k_y: Tensor, v_y: Tensor, layout: TokenLayout, soft_cap: float | None
) -> tuple[Tensor, Tensor]:
    """Attention of the whole pack in two kernels, to image and to text, which leave out blocks without a common sample.

    Raises InputError on a GPU unless compiled: uncompiled, FlexAttention computes all N × N logits.
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    if q.is_cuda and not torch.compiler.is_compiling():
        raise InputError("attention on a GPU needs torch.compile, which is off: unset TORCHDYNAMO_DISABLE")
    owner, text_owner = layout.sample_of_token, layout.sample_of_text

    def within(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return owner[i] == owner[j]

    def to_text(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return owner[i] == text_owner[j]

    def cap(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return SOFT_CAP * torch.tanh(score / SOFT_CAP)

    assert soft_cap in (None, SOFT_CAP)  # a constant of the kernel
    q, k, v, k_y, v_y = (rearrange(z, "N A d -> 1 A N d") for z in (q, k, v, k_y, v_y))
    (N, T), side = (q.shape[2], k_y.shape[2]), (BLOCK, BLOCK)
    image_mask = BlockMask((N, N), *layout.within.tables, BLOCK_SIZE=side, mask_mod=within)
    text_mask = BlockMask((N, T), *layout.to_text.tables, BLOCK_SIZE=side, mask_mod=to_text)
    image = flex_attention(q, k, v, score_mod=cap if soft_cap else None, block_mask=image_mask)
    text = flex_attention(q, k_y, v_y, block_mask=text_mask)
    return rearrange(image, "1 A N d -> N A d"), rearrange(text, "1 A N d -> N A d")


def _attend_compiled(
    q: Tensor, k: Tensor, v: Tensor, k_y: Tensor, v_y: Tensor, layout: TokenLayout, soft_cap: float | None
) -> tuple[Tensor, Tensor]:
    """`_attend_tokens` compiled, for a block that is not compiled itself."""
    return _compiled_attention()(*mark_sizes(q, k, v, k_y, v_y), layout, soft_cap)


@cache
def _compiled_attention() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_attend_tokens, fullgraph=True)
