"""NextDiT, the OneDiffusion transformer: frames with a noise level each in, their velocities out (docs/model.md).

Read downward: `forward` and `forward_packed` lay samples in one sequence, `_denoise` embeds it and loops over the
blocks, `Block.compute` has the equations of one.

Symbols of docs/model.md: B samples, F frames, C latent channels, h × w latent height and width, p = 2 side of a patch,
N tokens, D width, L prompt tokens, Y their width. All samples of a call, of one shape or of many, lie in one sequence
of N image tokens beside T text tokens, and have M noise levels: one a frame, or one a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from einops import rearrange
from torch import Tensor, nn

from model.adapters import remember
from model.attention import SOFT_CAP, Attention
from model.constants import LATENT_CHANNELS
from model.constants import PATCH_SIZE as P
from model.layers import FeedForward, RMSNorm, TimestepEmbedder
from model.layout import Group, Layout, TokenLayout, batch_layout, mark_sizes, packed_layout
from model.loading import load_model
from model.saving import refuse_adapters, save_whole
from model.single_file import read_single_file


class NextDiT(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The published model: constructor arguments, parameter names and numbers."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _repeated_blocks = ["Block"]
    _skip_layerwise_casting_patterns = ["t_embedder", "norm"]  # its input has the type of its weights

    @register_to_config
    def __init__(
        self,
        input_size: Sequence[int] = (1, 32, 32),
        patch_size: Sequence[int] = (1, P, P),
        in_channels: int = LATENT_CHANNELS,
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
        assert isinstance(norm_eps, int | float) and 0 <= norm_eps < 1, "norm_eps is a small number"
        assert soft_capping in (None, True, False), "soft_capping is true, false or left open"
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
        remember(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> NextDiT:
        """The model of a folder or hub name; see model.loading.load_model."""
        return load_model(cls, super().from_pretrained, pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_single_file(cls, path: Any, torch_dtype: torch.dtype | None = None) -> NextDiT:
        """The model in one safetensors file, as `onediffusion export --format comfyui` writes it."""
        return read_single_file(cls, Path(path), torch_dtype)

    def save_pretrained(
        self,
        save_directory: Any,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as diffusers does, also over an older folder (model.saving). Raises InputError with adapters loaded."""
        refuse_adapters(self)
        options = {"max_shard_size": "10GB" if max_shard_size is None else max_shard_size, **kwargs}
        save_whole(super().save_pretrained, save_directory, safe_serialization, variant, **options)

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
        scale_factor, scale_watershed: of the rotary frequencies (docs/model.md, Time-aware scaling).
        """
        x = samples[:, None] if samples.ndim == 4 else samples
        B, F, _, h, w = x.shape
        y, mask = encoder_hidden_states, encoder_attention_mask
        per_token = timesteps.numel() == x.numel()
        if per_token:
            t = _patchify(timesteps.view_as(x)).mean(-1)
        else:
            t = (timesteps[:, None] if timesteps.ndim == 1 else timesteps).expand(B, F).flatten()
        scaling = _frequency_scaling(timesteps, scale_factor, scale_watershed)
        layout = batch_layout(B, (F, h // P, w // P), mask, per_token, self.head_size, *scaling)
        v = self._denoise(_patchify(x), t, _pool(y, mask), rearrange(y, "B L Y -> (B L) Y"), layout)
        return _unpatchify(v, layout.groups[0]).view_as(samples)

    def forward_packed(
        self, samples: Sequence[Tensor], timesteps: Sequence[Tensor], text: Sequence[Tensor]
    ) -> list[Tensor]:
        """Velocities of samples of any shapes, as if each were alone: no padding, attention inside a sample only.

        samples: (F, C, h, w) each; timesteps: (F,) each, 0…1000; text: (L, Y) each, without padding.
        """
        # Samples of one shape lie together, so that attention can take them as a batch; and those whose frames have
        # equally many tokens, so that norms can.
        order = sorted(range(len(samples)), key=lambda i: (samples[i][0].numel(), *samples[i].shape, len(text[i])))
        xs, ys = [samples[i] for i in order], [text[i] for i in order]
        grids = [(x.shape[0], x.shape[2] // P, x.shape[3] // P) for x in xs]
        layout = packed_layout(grids, [len(y) for y in ys], self.head_size, xs[0].device)
        x = torch.cat([_patchify(torch.stack(list(group))) for _, group in groupby(xs, lambda x: x.shape)])
        t = torch.cat([timesteps[i] for i in order])
        pooled = torch.stack([y.sum(0) / (len(y) + 1e-8) for y in ys])
        v = self._denoise(x, t, pooled, torch.cat(ys), layout)
        parts = zip(layout.split(v), layout.groups, strict=True)
        velocities = [velocity for part, group in parts for velocity in _unpatchify(part, group).unbind()]
        return [velocity for _, velocity in sorted(zip(order, velocities, strict=True), key=lambda pair: pair[0])]

    def _denoise(self, x: Tensor, t: Tensor, pooled: Tensor, y: Tensor, groups: Layout) -> Tensor:
        """x (N, p·p·C), timesteps t (M,), pooled text (samples, Y), text tokens y (T, Y) → velocities (N, p·p·C)."""
        N = len(x)
        layout: Layout | TokenLayout = groups
        if _in_one_kernel(x.device):
            layout = TokenLayout.of(groups)
            x, y, t = layout.pad(x, y, t)
            if not torch.compiler.is_compiling():
                layout.mark_sizes()

        x = self.x_embedder(x)
        c = self.t_embedder(t) + self.y_embedder(pooled)[layout.sample_of_level]
        soft_cap = self._soft_cap(x.dtype)
        for block in self.layers:
            x = self._run_block(block, x, y, c, layout, soft_cap)
        v = self.final_layer(x, c, layout)
        return v if len(v) == N else v[:N]

    def _run_block(
        self, block: nn.Module, x: Tensor, y: Tensor, c: Tensor, layout: Layout | TokenLayout, soft_cap: float | None
    ) -> Tensor:
        """What `block` returns; with gradient checkpointing it is computed once more in the backward pass."""
        if isinstance(layout, TokenLayout) and not torch.compiler.is_compiling():
            # Before every block, since each returns a new tensor, and diffusers may compile the call of a block.
            mark_sizes(x, y, c)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            result: Tensor = self._gradient_checkpointing_func(block, x, y, c, layout, soft_cap)
            return result
        return block(x, y, c, layout, soft_cap)

    def _soft_cap(self, dtype: torch.dtype) -> float | None:
        """The soft cap of attention between image tokens that compute in this type; None for no cap."""
        configured = self.config.soft_capping
        return SOFT_CAP if (dtype != torch.float32 if configured is None else configured) else None

    def compile_blocks(self) -> None:
        """Let blocks run compiled on CUDA, where one graph serves packs of any shapes; elsewhere it has no effect."""
        for block in self.layers:
            block.compiled = True


class Block(nn.Module):
    """Attention and feed-forward, each between two norms, scaled and gated by the frame's timestep and text.

    `RMSNorm(x, factor, layout)` is norm(x) · factor, where factor has a row for each noise level.
    """

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
        """x (N, D), y (T, Y), c (M, min(D, 1024)) → (N, D)."""
        if self.compiled and isinstance(layout, TokenLayout) and not torch.compiler.is_compiling():
            # Hooks around the call of the module (of FSDP, of checkpointing) are not compiled. Tensors that they cast
            # are new and not marked yet.
            return _compiled_block()(self, *mark_sizes(x, y, c), layout, soft_cap)
        return self.compute(x, y, c, layout, soft_cap)

    def compute(self, x: Tensor, y: Tensor, c: Tensor, layout: Layout | TokenLayout, soft_cap: float | None) -> Tensor:
        """The equations of a block (docs/model.md, Block), which `forward` calls as they are or compiled."""
        scale_a, gate_a, scale_f, gate_f = self.adaLN_modulation(c).chunk(4, dim=-1)
        h = self.attention_norm1(x, 1 + scale_a, layout)
        h = self.attention(h, self.attention_y_norm(y), layout, soft_cap)
        x = x + self.attention_norm2(h, gate_a.tanh(), layout)
        h = self.ffn_norm1(x, 1 + scale_f, layout)
        h = self.feed_forward(h)
        return x + self.ffn_norm2(h, gate_f.tanh(), layout)


class FinalLayer(nn.Module):
    """Norm, scale, and the projection to the pixels of a patch."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(min(width, 1024), width))

    def forward(self, x: Tensor, c: Tensor, layout: Layout | TokenLayout) -> Tensor:
        """x (N, D), c (M, min(D, 1024)) → (N, p·p·C)."""
        scale = self.adaLN_modulation(c)
        return self.linear(layout.per_level(self.norm_final(x), 1 + scale, torch.mul))


@cache
def _compiled_block() -> Callable[..., Tensor]:
    """Block.compute as one graph for all blocks and packs. Raises torch's error where it cannot be one graph."""
    from torch._inductor import config

    # For DDP torch would split a graph, to send gradients early. A block is small, and a graph with
    # FlexAttention cannot be split.
    torch._dynamo.config.optimize_ddp = False
    options: dict[str, str | int | bool | Callable[..., object]] = {}
    if hasattr(config.triton, "mix_order_reduction"):  # not in every version of torch
        # This fusion depends on the length of the sequence: it would compile again for three ranges of it.
        options["triton.mix_order_reduction"] = False
    return torch.compile(Block.compute, fullgraph=True, options=options)


def _in_one_kernel(device: torch.device) -> bool:
    """Whether attention takes a pack as one sequence (TokenLayout) and not group by group, which is faster on a CPU."""
    return device.type == "cuda"


def _frequency_scaling(timesteps: Tensor, factor: float, watershed: float) -> tuple[float, float]:
    """(linear, ntk): what the rotary frequencies are divided by, and their base multiplied by."""
    if factor == 1.0:
        return 1.0, 1.0
    return (factor, 1.0) if bool(timesteps.max() < watershed) else (1.0, factor)


def _pool(y: Tensor, mask: Tensor) -> Tensor:
    """Text tokens (B, L, Y), mask (B, L) → their mean (B, Y)."""
    weight = mask.to(y.dtype)[..., None]
    return (y * weight).sum(1) / (weight.sum(1) + 1e-8)


def _patchify(x: Tensor) -> Tensor:
    return rearrange(x, "B F C (rows p1) (columns p2) -> (B F rows columns) (p1 p2 C)", p1=P, p2=P)


def _unpatchify(x: Tensor, group: Group) -> Tensor:
    F, rows, columns = group.grid
    pattern = "(B F rows columns) (p1 p2 C) -> B F C (rows p1) (columns p2)"
    return rearrange(x, pattern, F=F, rows=rows, columns=columns, p1=P, p2=P)
