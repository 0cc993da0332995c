"""NextDiT, the OneDiffusion transformer: frames with a noise level each in, their velocities out (docs/model.md).

Read downward: `forward` and `forward_packed` lay samples in one sequence, `_tokens` is the loop over blocks,
`Block` the equations of one.

B batch, F frames, C latent channels, h × w latents, p = 2 spatial patch, r × c = h/p × w/p tokens a frame, D width,
L prompt tokens, Y text width. All samples of a call, of one shape or of many, lie in one pack of N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from einops import rearrange
from torch import Tensor, nn

from model.attention import SOFT_CAP, Attention
from model.constants import PATCH_SIZE as P
from model.layers import FeedForward, RMSNorm, TimestepEmbedder
from model.layout import Group, Layout, TokenLayout, batch_layout, mark_sizes, packed_layout
from model.loading import load_model


class NextDiT(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The published model: constructor arguments, parameter names and numbers."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _repeated_blocks = ["Block"]

    @register_to_config
    def __init__(
        self,
        input_size: Sequence[int] = (1, 32, 32),
        patch_size: Sequence[int] = (1, 2, 2),
        in_channels: int = 16,
        hidden_size: int = 4096,
        depth: int = 32,
        num_heads: int = 32,
        num_kv_heads: int | None = None,
        multiple_of: int = 256,
        ffn_dim_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        pred_sigma: bool = False,
        caption_channels: int = 4096,
        qk_norm: bool = False,
        norm_type: str = "rms",
        model_max_length: int = 120,
        rotary_max_length: int = 384,
        rotary_max_length_t: int = 16,
        soft_capping: bool | None = None,
    ) -> None:
        """soft_capping: of self-attention logits; None means as published, in bf16 and fp16 but not in fp32."""
        super().__init__()
        assert tuple(patch_size) == (1, P, P) and not pred_sigma, "no such published model"
        assert hidden_size % num_heads == 0 and hidden_size // num_heads % 6 == 0, "head size must divide by 6"
        width, self.in_channels = min(hidden_size, 1024), in_channels
        self.head_size = hidden_size // num_heads
        self.x_embedder = nn.Linear(P * P * in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = nn.Sequential(nn.LayerNorm(caption_channels, eps=1e-6), nn.Linear(caption_channels, width))
        arguments = (hidden_size, num_heads, num_kv_heads or num_heads, multiple_of, ffn_dim_multiplier, norm_eps)
        self.layers = nn.ModuleList([Block(*arguments, qk_norm, caption_channels) for _ in range(depth)])
        self.final_layer = FinalLayer(hidden_size, P * P * in_channels)
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> NextDiT:
        """The model of a folder or hub name; see model.loading.load_model."""
        return load_model(cls, super().from_pretrained, pretrained_model_name_or_path, **kwargs)

    def forward(
        self,
        samples: Tensor,
        timesteps: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        scale_factor: float = 1.0,
        scale_watershed: float = 1.0,
    ) -> Tensor:
        """Velocity of samples (B, F, C, h, w) or (B, C, h, w), in the same shape.

        timesteps: 0…1000, (B,), (B, F) or for each element; encoder_hidden_states (B, L, Y) with mask (B, L).
        """
        x = samples[:, None] if samples.ndim == 4 else samples
        B, F, _, h, w = x.shape
        linear, ntk = 1.0, 1.0
        if scale_factor != 1.0:
            early = bool(timesteps.max() < scale_watershed)
            linear, ntk = (scale_factor, 1.0) if early else (1.0, scale_factor)
        per_token = timesteps.numel() == x.numel()
        if per_token:
            t = _patchify(timesteps.view_as(x)).mean(-1)
        else:
            t = (timesteps[:, None] if timesteps.ndim == 1 else timesteps).expand(B, F).flatten()
        y, mask = encoder_hidden_states, encoder_attention_mask
        weight = mask.to(y.dtype)[..., None]
        pooled = (y * weight).sum(1) / (weight.sum(1) + 1e-8)
        layout = batch_layout(B, (F, h // P, w // P), mask, per_token, self.head_size, linear, ntk)
        v = self._tokens(_patchify(x), t, pooled, rearrange(y, "B L Y -> (B L) Y"), layout)
        return _unpatchify(v, layout.groups[0]).view_as(samples)

    def forward_packed(
        self, samples: Sequence[Tensor], timesteps: Sequence[Tensor], text: Sequence[Tensor]
    ) -> list[Tensor]:
        """Velocities of samples of any shapes, as if each were alone: no padding, attention inside a sample only.

        samples: (F, C, h, w) each; timesteps: (F,) each, 0…1000; text: (L, Y) each, without padding.
        """
        # Samples of one shape lie together, so that attention can take them as a batch.
        order = sorted(range(len(samples)), key=lambda i: (tuple(samples[i].shape), len(text[i])))
        xs, ys = [samples[i] for i in order], [text[i] for i in order]
        grids = [(x.shape[0], x.shape[2] // P, x.shape[3] // P) for x in xs]
        layout = packed_layout(grids, [len(y) for y in ys], self.head_size, xs[0].device)
        x = torch.cat([_patchify(torch.stack(list(alike))) for _, alike in groupby(xs, lambda x: x.shape)])
        t = torch.cat([timesteps[i] for i in order])
        pooled = torch.stack([y.sum(0) / (len(y) + 1e-8) for y in ys])
        v = self._tokens(x, t, pooled, torch.cat(ys), layout)
        parts = zip(layout.split(v), layout.groups, strict=True)
        velocities = [one for part, group in parts for one in _unpatchify(part, group).unbind()]
        return [velocities[place] for place in sorted(range(len(order)), key=order.__getitem__)]

    def _tokens(self, x: Tensor, t: Tensor, pooled: Tensor, y: Tensor, layout: Layout) -> Tensor:
        """x (N, p·p·C), timesteps t (rows,), pooled text (samples, Y), text tokens y (T, Y) → (N, p·p·C)."""
        N, of_row, marked = len(x), layout.sample_of_row, False
        tokens: Layout | TokenLayout = layout
        if _in_one_kernel(x.device):
            tokens = TokenLayout.of(layout)
            of_row = tokens.sample_of_row
            x, y, t = (_padded(z, to) for z, to in ((x, tokens.cos), (y, tokens.sample_of_text), (t, of_row)))
            if marked := not torch.compiler.is_compiling():
                tokens.mark_sizes()
        x = self.x_embedder(x)
        c = self.t_embedder(t) + self.y_embedder(pooled)[of_row]
        capped = self.config.soft_capping if self.config.soft_capping is not None else x.dtype != torch.float32
        for layer in self.layers:
            if marked:  # every time: diffusers compiles the call of a block, and each gives a tensor that is new
                mark_sizes(x, y, c)
            arguments = (x, y, c, tokens, SOFT_CAP if capped else None)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(layer, *arguments)
            else:
                x = layer(*arguments)
        v = self.final_layer(x, c, tokens)
        return v if len(v) == N else v[:N]

    def compile_blocks(self) -> None:
        """Compile the blocks where packs are one sequence of tokens (CUDA): one graph serves packs of any shapes."""
        for layer in self.layers:
            layer.compiled = True


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
            return _compiled_block()(self, *mark_sizes(x, y, c), layout, soft_cap)
        return self.compute(x, y, c, layout, soft_cap)

    def compute(self, x: Tensor, y: Tensor, c: Tensor, layout: Layout | TokenLayout, soft_cap: float | None) -> Tensor:
        """What forward computes, and what is compiled."""
        scale_msa, gate_msa, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(4, dim=-1)
        h = self.attention_norm1(x, 1 + scale_msa, layout)
        h = self.attention(h, self.attention_y_norm(y), layout, soft_cap)
        x = x + self.attention_norm2(h, gate_msa.tanh(), layout)
        h = self.feed_forward(self.ffn_norm1(x, 1 + scale_mlp, layout))
        return x + self.ffn_norm2(h, gate_mlp.tanh(), layout)


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


@cache
def _compiled_block() -> Callable[..., Tensor]:
    """Block.compute as one graph for all blocks and packs; an error where it is none."""
    from torch._inductor import config

    # Blocks end where gradients do, so there is nothing left to cut for DDP, which could not cut FlexAttention either.
    torch._dynamo.config.optimize_ddp = False
    # This fusion asks how long the sequence is, and compiles again for three ranges of it.
    asks = hasattr(config.triton, "mix_order_reduction")
    options: dict[str, str | int | bool | Callable[..., object]] = {"triton.mix_order_reduction": False} if asks else {}
    return torch.compile(Block.compute, fullgraph=True, options=options)


def _in_one_kernel(device: torch.device) -> bool:
    """Whether a pack is computed token by token; a CPU is faster by groups of one shape, with what they share once."""
    return device.type == "cuda"


def _padded(x: Tensor, to: Tensor) -> Tensor:
    """x (n, …) with zeros up to the length of `to`."""
    return torch.cat([x, x.new_zeros(len(to) - len(x), *x.shape[1:])])


def _patchify(x: Tensor) -> Tensor:
    return rearrange(x, "B F C (r p) (c q) -> (B F r c) (p q C)", p=P, q=P)


def _unpatchify(x: Tensor, group: Group) -> Tensor:
    F, r, c = group.grid
    return rearrange(x, "(B F r c) (p q C) -> B F C (r p) (c q)", F=F, r=r, c=c, p=P, q=P)
