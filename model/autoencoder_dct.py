"""The image codec that needs no training, as a diffusers model. B pictures, H × W pixels, h = H/8, w = W/8."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional

from model.dct import BLOCK, CHANNELS, MEAN, STD, kernels


class AutoencoderDCT(ModelMixin, ConfigMixin):
    """Pictures to whitened DCT coefficients and back, with the interface of diffusers' AutoencoderKL.

    Every latent decodes to a picture that encodes to it exactly.
    """

    @register_to_config
    def __init__(self, latent_channels: int = CHANNELS, block_size: int = BLOCK, scaling_factor: float = 1.0) -> None:
        super().__init__()
        assert (latent_channels, block_size) == (CHANNELS, BLOCK), "the constants are for these"
        analysis, synthesis = kernels()
        constants = {
            "analysis": torch.from_numpy(analysis).float(),
            "synthesis": torch.from_numpy(synthesis).float(),
            "mean": torch.tensor(MEAN, dtype=torch.float32).view(CHANNELS, 1, 1),
            "std": torch.tensor(STD, dtype=torch.float32).view(CHANNELS, 1, 1),
        }
        for name, value in constants.items():
            # Parameters, for offloading asks a model where its parameters are.
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    @apply_forward_hook
    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """(B, 3, H, W) in [-1, 1] → a distribution that is one point, (B, 16, h, w)."""
        blocks = functional.conv2d(x, self.analysis, stride=BLOCK)
        return AutoencoderKLOutput(latent_dist=IdentityDistribution((blocks - self.mean) / self.std))

    @apply_forward_hook
    def decode(self, z: Tensor) -> DecoderOutput:
        """(B, 16, h, w) → (B, 3, H, W), not clamped to [-1, 1]."""
        return DecoderOutput(sample=functional.conv_transpose2d(z * self.std + self.mean, self.synthesis, stride=BLOCK))
