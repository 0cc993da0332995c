"""Processes of a node that need the same model fetch it once, from the hub and from S3."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import hub_server
from tiny_models import save_vae

from model import node_cache
from model.inputs import InputError
from model.weights import model_folder, weights_digest

CODE = "import sys; from model.weights import model_folder; print(model_folder(sys.argv[1], 'vae'))"


def folders(name: str, count: int, **environment: str) -> set[str]:
    """What so many processes at once are told."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, name], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    return {process.communicate(timeout=120)[0].strip() for process in started}


def test_hub_is_asked_once_for_all_processes(tmp_path: Path) -> None:
    save_vae(tmp_path / "model" / "vae", scaling_factor=1.5)
    with hub_server(tmp_path / "model", "own/er") as (address, requests):
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        (folder,) = folders("own/er", 3, **environment)
        assert weights_digest(Path(folder)) == weights_digest(tmp_path / "model" / "vae")
        weights = [request for request in requests if request.startswith("GET") and "safetensors" in request]
        assert len(weights) == 1, requests
        told = len(requests)
        assert folders("own/er", 1, **environment) == {folder}
        assert len(requests) == told, "not even asked again, some moments later"


def test_model_on_s3_is_copied_once(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from huggingface_hub import constants

    save_vae(tmp_path / "model" / "vae", scaling_factor=1.5)
    client = boto3.client("s3", region_name="us-east-1")
    for path in (tmp_path / "model" / "vae").iterdir():
        client.upload_file(str(path), "lab", f"models/own/vae/{path.name}")
    client.put_object(Bucket="lab", Key="models/own/vae/pytorch_model.bin", Body=b"not read")
    (folder,) = folders(f"{s3}/models/own", 2, HF_HOME=str(tmp_path / "home"))
    assert weights_digest(Path(folder)) == weights_digest(tmp_path / "model" / "vae")
    assert not Path(folder, "pytorch_model.bin").exists()
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    # What a node has serves while S3 is away, for some minutes.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert model_folder(f"{s3}/models/own", "vae") == Path(folder)


def test_changed_model_on_s3_gets_its_own_folder(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    client = boto3.client("s3", region_name="us-east-1")
    client.put_object(Bucket="lab", Key="models/changing/config.json", Body=b"{}")
    first = node_cache.s3_model(f"{s3}/models/changing")
    client.put_object(Bucket="lab", Key="models/changing/config.json", Body=b'{"other": 1}')
    assert node_cache.s3_model(f"{s3}/models/changing") == first
    now = time.time
    monkeypatch.setattr(node_cache.time, "time", lambda: now() + node_cache.FRESH_SECONDS + 1)
    second = node_cache.s3_model(f"{s3}/models/changing/")
    assert second != first
    assert [(folder / "config.json").read_text() for folder in (first, second)] == ["{}", '{"other": 1}']
    with pytest.raises(InputError, match="s3://lab/models/none: no model is there"):
        node_cache.s3_model(f"{s3}/models/none")


def test_cache_that_cannot_be_written_serves(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert node_cache.fetched_once(tmp_path / "file", "x", lambda: tmp_path) == tmp_path
