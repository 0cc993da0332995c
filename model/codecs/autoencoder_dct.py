"""The image codec that needs no training, as a diffusers model. B pictures, H × W pixels, h = H/8, w = W/8."""

from __future__ import annotations

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from model.codecs.block_transform import analyze, block_constants, synthesize
from model.codecs.dct import BLOCK, CHANNELS


class AutoencoderDCT(ModelMixin, ConfigMixin):
    """Pictures to whitened DCT coefficients and back, with the interface of diffusers' AutoencoderKL.

    Every latent decodes to a picture that encodes to it exactly.
    """

    @register_to_config
    def __init__(self, latent_channels: int = CHANNELS, block_size: int = BLOCK, scaling_factor: float = 1.0) -> None:
        super().__init__()
        assert (latent_channels, block_size) == (CHANNELS, BLOCK), "the constants are for these"
        for name, value in block_constants().items():
            # Parameters and not buffers, since offloading looks at the device of a model's parameters.
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    @apply_forward_hook
    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """(B, 3, H, W) in [-1, 1] → a distribution that is one point, (B, 16, h, w)."""
        blocks = analyze(x, self.analysis, self.mean, self.std)
        return AutoencoderKLOutput(latent_dist=IdentityDistribution(blocks))

    @apply_forward_hook
    def decode(self, z: Tensor) -> DecoderOutput:
        """(B, 16, h, w) → (B, 3, H, W), not clamped to [-1, 1]."""
        return DecoderOutput(sample=synthesize(z, self.synthesis, self.mean, self.std))
