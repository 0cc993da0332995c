"""S3 that answers some requests with 500 or 503, or cuts them off: all goes on, and the bytes are right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from s3_proxy import FAULTS, s3_proxy

from labeling.dataset import IMAGES, Dataset, open_store, write_shard
from model.inputs import InputError

ROOT = Path(__file__).parents[3]


def test_every_operation_outlives_faults(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_proxy(os.environ["AWS_ENDPOINT_URL"], share=0.2) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        store = open_store(f"{s3}/{tmp_path.name}")
        ids = [f"{number:032x}" for number in range(2000)]
        table = pa.table({"id": ids})
        for number in range(8):
            write_shard(store, "g", f"{number:06d}", table, [1000, 1000], "recipe")
        store.put("dataset.json", b'{"schema": 1, "kind": "pictures", "shards": [], "sources": []}')
        dataset = Dataset.open(store.uri)
        assert len(store.files("g")) == 8 and store.folders() == ["g"] and store.exists("g/000007.parquet")
        for number in range(8):
            assert store.read_range(f"g/{number:06d}.parquet", 0, 4) == b"PAR1"
            assert dataset.footer("g", f"{number:06d}").rows == 2000
            assert dataset.read("g", f"{number:06d}").equals(table)
        assert min(proxy.counts[fault] for fault in FAULTS) >= 1


def test_endless_faults_end_in_an_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with s3_proxy(os.environ["AWS_ENDPOINT_URL"], share=1.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        with pytest.raises(Exception, match=r"(?i)internal|slow|closed"):
            open_store(f"{s3}/x").files()
        assert proxy.requests == 2


def test_expired_credentials_are_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(f"{s3}/expired").put("a", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="refused these credentials"):
        open_store(f"{s3}/expired").read_tail("a", 8)


@pytest.mark.slow
def test_label_through_faulty_s3_gives_the_same_bytes(s3: str, tmp_path: Path, photographs: Path) -> None:
    calm, shaken = tmp_path / "calm", f"{s3}/{tmp_path.name}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}

    def onediffusion(*arguments: str, **more: str) -> str:
        command = [sys.executable, "-m", "pipelines", *arguments]
        done = subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "coins.png", "page.png"):
        (sources / name).symlink_to(photographs / name)
    onediffusion("ingest", str(sources), str(calm), "--shard-rows", "1")
    for name in open_store(calm).walk():
        open_store(shaken).put(name, (calm / name).read_bytes())
    onediffusion("label", str(calm), "simple_labelers:Brightness")
    with s3_proxy(os.environ["AWS_ENDPOINT_URL"], share=0.05) as proxy:
        onediffusion("label", shaken, "simple_labelers:Brightness", AWS_ENDPOINT_URL=proxy.address)
        assert sum(proxy.counts[fault] for fault in FAULTS) >= 3, proxy.counts
    for shard in Dataset.open(calm).shards:
        for group in (IMAGES, "brightness"):
            name = f"{group}/{shard.name}.parquet"
            assert open_store(shaken).read(name) == (calm / name).read_bytes()
