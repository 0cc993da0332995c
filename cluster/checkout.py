"""The checkout that runs, and the files of a checkout that are sent to a cluster."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

from model.inputs import InputError

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("model", "labeling", "training", "cluster", "pipelines")
MAX_BYTES = 500 << 20  # a little less than what Ray takes as a package


def checkout_files(folder: Path) -> list[str]:
    """What is uploaded of a checkout: all that git does not ignore, or, without git, the project's own packages."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],  # noqa: S607 - the user's own git
            cwd=folder,
            capture_output=True,
            check=True,
        ).stdout.decode()
        names = [name for name in listing.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = (path.relative_to(folder) for package in PACKAGES for path in (folder / package).rglob("*.*"))
        names = [str(path) for path in paths if "__pycache__" not in path.parts]
    return sorted(name for name in names if (folder / name).is_file())


def pack_checkout(folder: Path, archive: Path) -> None:
    """Write a zip whose bytes depend on the files alone, so that Ray uploads the same files once.

    Raises InputError for a checkout that is too large, and for files that cannot be read.
    """
    names = checkout_files(folder)
    sizes = {name: (folder / name).stat().st_size for name in names}
    if sum(sizes.values()) > MAX_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise InputError(
            f"{folder}: {sum(sizes.values()) >> 20} MB would be uploaded with the job, {MAX_BYTES >> 20} MB at the "
            f"most; let git ignore what is no code (the largest file is {largest})"
        )
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            try:
                content = (folder / name).read_bytes()
            except OSError as error:
                raise InputError(
                    f"{folder / name}: cannot be uploaded with the job ({error.strerror}); make it readable, or let "
                    "git ignore it"
                ) from None
            packed.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def job_pins() -> list[str]:
    """Pins of the packages that jobs need: the core, the labelers, and all that these require; Ray is the cluster's."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    pending = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["labelers"]]
    visited: set[tuple[str, frozenset[str]]] = set()
    while pending:
        requirement = pending.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in visited:
            continue
        visited.add(key)
        try:
            texts = requires(requirement.name) or []
        except PackageNotFoundError:  # an extra that this machine lacks: the package itself is pinned all the same
            continue
        for needed in map(Requirement, texts):
            if not needed.marker or any(
                needed.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                pending.append(needed)
    names = {name for name, _ in visited} - {"ray"}
    pins = [line.strip() for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if "==" in line]
    return [pin for pin in pins if canonicalize_name(pin.split("==")[0]) in names]
