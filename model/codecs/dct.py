"""The numbers of the image codec that needs no training: the 16 lowest DCT coefficients of 8 × 8 blocks, whitened.

Ten of luma, three of each chroma (YCbCr as in JPEG), so that a latent has the shape of the published model's
autoencoder: 16 channels at an eighth of the side.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from model.constants import LATENT_CHANNELS, LATENT_FACTOR

BLOCK, CHANNELS = LATENT_FACTOR, LATENT_CHANNELS  # a block of BLOCK × BLOCK pixels becomes CHANNELS numbers
# (row, column) frequencies in zig-zag order.
_LUMA = ((0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0))
_CHROMA = _LUMA[:3]
_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

# Mean and standard deviation of each coefficient over all blocks of the photographs of scikit-image 0.26 that its
# wheel holds (named in tests/model/test_codecs.py, which computes them again), each fitted to its bucket around
# 256 × 256, pixels in [-1, 1]. Two things are not as measured. The means of all but the flat coefficients are 0, as for
# pictures and their mirror images together. The four chroma gradients, which photographs hardly have (0.11 to 0.16),
# get the smallest deviation of luma, or the border between two saturated colors of a mask would be 43 deviations away.
MEAN = (-1.65, 0, 0, 0, 0, 0, 0, 0, 0, 0, -0.40, 0, 0, 0.66, 0, 0)
STD = (3.11, 0.67, 0.66, 0.35, 0.37, 0.39, 0.26, 0.25, 0.25, 0.22, 0.87, 0.22, 0.22, 1.28, 0.22, 0.22)
DIGEST = hashlib.blake2b(repr((_LUMA, _CHROMA, _YCBCR, MEAN, STD)).encode(), digest_size=16).hexdigest()


def kernels() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Convolution kernels (16, 3, 8, 8) from RGB to coefficients and from coefficients to RGB."""
    index = np.arange(BLOCK)
    basis = np.sqrt(2 / BLOCK) * np.cos((2 * index + 1) * index[:, None] * np.pi / (2 * BLOCK))
    basis[0] /= np.sqrt(2)  # orthonormal: basis @ basis.T is the identity
    to_ycbcr = np.array(_YCBCR)
    to_rgb = np.linalg.inv(to_ycbcr)
    chosen = [(0, *at) for at in _LUMA] + [(1, *at) for at in _CHROMA] + [(2, *at) for at in _CHROMA]
    waves = [(channel, np.outer(basis[row], basis[column])) for channel, row, column in chosen]
    forward = np.stack([to_ycbcr[channel][:, None, None] * wave for channel, wave in waves])
    inverse = np.stack([to_rgb[:, channel][:, None, None] * wave for channel, wave in waves])
    return forward, inverse
