"""`label duplicates`: copies of pictures are found, other pictures are not, and one of each group is kept."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from commands import onediffusion
from PIL import Image

from labeling.dataset import Dataset, dataset_status, select_rows
from model.inputs import InputError
from pipelines.ingest import ingest
from pipelines.label import label, plan

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "moon.png", "coins.png")
SIDE = 320


def write_copies(photograph: Path, folder: Path) -> list[str]:
    """The photograph and copies: half the size, recompressed, cropped, and all of it."""
    picture = Image.open(photograph).convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    width, height = picture.size
    cropped = picture.crop((width // 50, height // 50, width - width // 50, height - height // 50))
    copies = {
        "original": (picture, 95),
        "half": (picture.resize((width // 2, height // 2)), 90),
        "recompressed": (picture, 30),
        "cropped": (cropped, 90),
        "all": (cropped.resize((width // 2, height // 2)), 50),
    }
    for name, (copy, quality) in copies.items():
        copy.save(folder / f"{photograph.stem}-{name}.jpg", quality=quality)
    return [f"{photograph.stem}-{name}.jpg" for name in copies]


@pytest.mark.usefixtures("ray_cluster")
def test_copies_are_found_and_the_largest_is_kept(photographs: Path, tmp_path: Path) -> None:
    source, uri = tmp_path / "source", str(tmp_path / "dataset")
    source.mkdir()
    for name in PHOTOGRAPHS:
        write_copies(photographs / name, source)
    ingest(str(source), uri, shard_rows=16)
    result = label(uri, ["duplicates"])
    dataset = Dataset.open(uri)
    assert result.written["hashes"] == result.written["duplicates"] == len(dataset.shards) == 3
    columns = {"images": ["id", "source"], "duplicates": None}
    rows = [row for shard in dataset.shard_names for row in dataset.join(shard, columns).to_pylist()]
    pairs = list(itertools.combinations(rows, 2))
    same = [a["images.source"].split("-")[0] == b["images.source"].split("-")[0] for a, b in pairs]
    found = [a["duplicates.group"] == b["duplicates.group"] for a, b in pairs]
    right = sum(one and other for one, other in zip(same, found, strict=True))
    assert right / sum(found) == 1.0, "precision"
    assert right / sum(same) >= 0.9, "recall"
    assert all(row["duplicates.error"] is None and row["duplicates.rows"] >= 1 for row in rows)
    kept = [row for row in rows if row["duplicates.keep"]]
    assert len(kept) == len({row["duplicates.group"] for row in rows})
    kinds = {row["images.source"].split("-")[1] for row in kept if row["duplicates.rows"] == 5}
    assert kinds and kinds <= {"original.jpg", "recompressed.jpg"}, "none of a group is larger"
    assert select_rows(dataset, "duplicates.keep").rows == len(kept)
    # Nothing is left to do; of another threshold only the groups are made again.
    assert not label(uri, []).written
    assert all(not (state.stale or state.missing) for state in dataset_status(dataset).values())
    again = label(uri, ["duplicates"], {"duplicates": {"distance": 0}})
    assert dict(again.written) == {"duplicates": 3}
    assert plan(uri, ["duplicates"])["duplicates"].shards == 0
    with pytest.raises(InputError, match=r"depends on all rows of .*; label it without --shards"):
        label(uri, ["duplicates"], shards=(0, 1))


@pytest.mark.usefixtures("shared_ray")
def test_copies_by_embedding_are_left_out_from_the_command_line_on(photographs: Path, tmp_path: Path) -> None:
    source, uri = tmp_path / "source", str(tmp_path / "dataset")
    source.mkdir()
    for name in PHOTOGRAPHS[:4]:
        write_copies(photographs / name, source)
    ingest(str(source), uri, shard_rows=16)
    settings = ["--set", "duplicates.by=embedding", "--set", "duplicates.similarity=0.7"]
    done = onediffusion("label", uri, "duplicates", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    dataset = Dataset.open(uri)
    assert "hashes" not in dataset.groups() and "embedding" in dataset.groups()
    asked = "select count(*) as kept, count(distinct duplicates.group) as groups from rows where duplicates.keep"
    answer = onediffusion("query", uri, asked, "--json")
    assert json.loads(answer.stdout) == {"kept": 4, "groups": 4}, answer.stdout + answer.stderr
    # What is labeled, and trained on, is one picture of each.
    done = onediffusion("label", uri, "edges", "--where", "duplicates.keep")
    assert done.returncode == 0, done.stdout + done.stderr
    labeled = [row for row in dataset.rows("edges") if row["error"] is None]
    assert len(labeled) == 4 == select_rows(dataset, "duplicates.keep").rows
