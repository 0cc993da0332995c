"""Labelers of the catalog from the command line, with tiny random models where they take one by name."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from chat_server import Reply, chat_server, says
from commands import ROOT, onediffusion
from tiny_networks import (
    save_classifier,
    save_clip,
    save_grounding_dino,
    save_llava,
    save_sam2,
    save_sam3,
    save_vitpose,
)

from labeling.dataset import Dataset
from model.codecs import load_codec
from model.pictures import aspect_bucket, decode_picture, fit_picture
from pipelines.ingest import ingest
from pipelines.label import plan

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]
KEY = "sk-abcdefghijklmnop"


def label(dataset: Dataset, groups: str, *settings: str, **environment: str) -> str:
    """What the command prints; it succeeds."""
    changed = [word for setting in settings for word in ("--set", setting)]
    done = onediffusion("label", dataset.uri, *groups.split(), *changed, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_models_by_name_label_a_dataset(dataset: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    builds = {
        "vlm": save_llava, "dino": save_grounding_dino, "sam2": save_sam2, "sam3": save_sam3, "pose": save_vitpose,
        "clip": save_clip, "nsfw": lambda folder: save_classifier(folder, ["normal", "nsfw"]),
        "score": lambda folder: save_classifier(folder, ["score"]),
    }  # fmt: skip
    for name, build in builds.items():
        (tmp_path / name).mkdir()
        build(tmp_path / name)
    paths = {name: tmp_path / name for name in builds}
    label(
        dataset,
        "caption objects boxes segmentation segmentation-words pose embedding quality faces degraded-inpainting "
        "latents-64-degraded-inpainting",
        f"caption.model={paths['vlm']}", "caption.tokens=12", "caption.temperature=0.7", "caption.dtype=fp32",
        f"objects.model={paths['vlm']}", "objects.tokens=3", "objects.dtype=fp32",
        f"boxes.model={paths['dino']}", "boxes.names_from=caption", "boxes.names=[cat, dog, sofa]",
        "boxes.threshold=0", "boxes.most=4",
        f"segmentation.model={paths['sam2']}", "segmentation.kind=boxes",
        f"segmentation-words.model={paths['sam3']}", "segmentation-words.kind=words", "segmentation-words.threshold=0",
        "segmentation-words.names=[cat, wine glass]",
        f"pose.model={paths['pose']}", "pose.person=[Cat, sofa, dog]",
        f"embedding.model={paths['clip']}", f"quality.aesthetic={paths['score']}", f"quality.nsfw={paths['nsfw']}",
    )  # fmt: skip
    for group in ("caption", "objects", "boxes", "segmentation", "segmentation-words", "pose", "embedding", "quality",
                  "faces", "degraded-inpainting", "latents-64-degraded-inpainting"):  # fmt: skip
        rows = list(dataset.rows(group))
        assert len(rows) == 6 and not any(row["error"] for row in rows), (group, [row["error"] for row in rows])
    boxes, captions = list(dataset.rows("boxes")), list(dataset.rows("caption"))
    for found, said in zip(boxes, captions, strict=True):
        assert set(found["names"]) <= {word for word in ("cat", "dog", "sofa") if word in said["caption"].split()}
    assert any(found["names"] for found in boxes)
    for pose, found in zip(dataset.rows("pose"), boxes, strict=True):
        assert len(pose["keypoints"]) == len(found["names"])  # every box is a person by these names
    assert all(row["aesthetic"] is not None and 0 < row["nsfw"] < 1 for row in dataset.rows("quality"))
    # What is trained on as `degraded: stored` is the degraded picture at the size of the picture's latents.
    degraded, encoded = (next(iter(dataset.rows(f"{prefix}degraded-inpainting"))) for prefix in ("", "latents-64-"))
    picture = decode_picture(degraded["picture"])
    pixels = torch.from_numpy(fit_picture(picture, *aspect_bucket(picture.shape[1], picture.shape[0], 64)))
    latent = load_codec("dct").encode(pixels.permute(2, 0, 1)[None].float() / 127.5 - 1)
    assert torch.equal(latent[0].half().flatten(), torch.tensor(encoded["latent"], dtype=torch.half))
    assert str(tmp_path) not in json.dumps(next(iter(dataset.rows("segmentation-words")))["model"])


def test_killed_label_asks_an_endpoint_nothing_twice_for_a_finished_shard(pictures: Path, tmp_path: Path) -> None:
    """A paid endpoint that is full once and wrong once, and answers no fourth picture until the job is killed."""
    ingest(str(pictures), str(tmp_path / "dataset"), shard_rows=1)
    dataset = Dataset.open(tmp_path / "dataset")
    alive, asked = threading.Event(), Counter[str]()

    def answer(body: dict[str, Any], number: int) -> Reply:
        picture = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:12]
        asked[picture] += 1
        if number > 5 and not alive.is_set():
            alive.wait(60)
        faults = {1: Reply(429, b"", {"Retry-After": "0.1"}), 3: Reply(200, b"rubbish")}
        return faults.get(number) or says(f"a picture {picture}")

    command = ["label", dataset.uri, "caption", "--set", "caption.model=tiny", "--set", "caption.key=CAPTION_KEY"]
    environment = {"CAPTION_KEY": KEY, "RAY_ADDRESS": ""}  # a Ray of its own, whose processes have the key
    with chat_server(answer) as server:
        command += ["--set", f"caption.endpoint={server.address}"]

        def has_come_far() -> bool:
            return len(server.requests) > 5 and len(finished_rows(dataset)) > 1

        printed = kill_when(command, environment, tmp_path / "log", has_come_far)
        finished = {row["caption"].split()[-1] for row in finished_rows(dataset)}
        before = Counter(asked)
        alive.set()
        assert 1 < len(finished) < 6
        done = onediffusion(*command, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {picture: asked[picture] - before[picture] for picture in finished} == dict.fromkeys(finished, 0)
        assert len(asked) == 6 and all(count <= 3 for count in asked.values())
    rows = list(dataset.rows("caption"))
    assert {row["caption"].split()[-1] for row in rows} == set(asked) and not any(row["error"] for row in rows)
    assert plan(dataset.uri, ["caption"])["caption"].shards == 0
    assert {request["headers"]["Authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    kept = [path.read_bytes() for path in (tmp_path / "dataset").rglob("*") if path.is_file()]
    assert not any(KEY.encode() in data for data in kept) and KEY not in printed + done.stdout + done.stderr


def finished_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """The captions of the shards that are there."""
    there = [shard for shard in dataset.shard_names if dataset.store.exists(f"caption/{shard}.parquet")]
    return [row for shard in there for row in dataset.read("caption", shard).to_pylist()]


def kill_when(command: list[str], environment: dict[str, str], log: Path, moment: Callable[[], bool]) -> str:
    """Start a command, kill it at a moment, and wait for what it had started; what it printed."""
    with log.open("wb") as output:
        job = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *command],
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    deadline = time.monotonic() + 240
    while not (came := moment()) and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []
    job.send_signal(signal.SIGKILL)
    job.wait()
    _, left = psutil.wait_procs([one for one in children if not one.name().endswith("Agent")], timeout=240)
    for process in children:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert came, log.read_text()
    assert not left, "what labels for the job must end with it"
    return log.read_text()
