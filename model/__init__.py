"""OneDiffusion: the transformer, its codecs, prompts, conditions, cameras and sampling. Needs no Ray."""

from __future__ import annotations

import importlib
import logging
from typing import Any

_EXPORTS = {
    "NextDiT": "model.transformer",
    "OneDiffusionPipeline": "model.pipeline",
    "sample_frames": "model.sampling",
}
__all__ = ["NextDiT", "OneDiffusionPipeline", "sample_frames"]

# diffusers imports torchao where it is installed, and both then warn of parts that nothing here uses.
for _name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
