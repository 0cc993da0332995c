"""S3 that answers some requests with 500 or 503, or cuts them off: all goes on, and the bytes are right."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from commands import onediffusion
from PIL import Image
from s3_proxy import FAULTS, s3_proxy

from labeling.dataset import (
    IMAGE_COLUMN,
    IMAGE_SCHEMA,
    IMAGES,
    Dataset,
    ShardInfo,
    expected_recipe,
    open_store,
    write_shard,
)
from labeling.dataset.storage import S3Store
from labeling.dataset.storage.errors import dispensable
from labeling.declaration import declare
from labeling.registry import load_labeler
from labeling.run import label_table
from model.inputs import InputError, WorkFailed


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
        store.put_stream("stream", iter([b"a" * (9 << 20), b"b" * (9 << 20)]), 18 << 20)
        assert store.read("stream") == b"a" * (9 << 20) + b"b" * (9 << 20)
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


def test_stores_share_clients_until_credentials_change(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    first, second = S3Store(f"{s3}/one"), S3Store(f"{s3}/two")
    assert first.client is second.client and first.arrow()[0] is second.arrow()[0]
    (tmp_path / "credentials").write_text("[default]\n")  # as a login does that renews them
    assert S3Store(f"{s3}/one").client is not first.client
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    third = S3Store(f"{s3}/one")
    assert third.client is not first.client and third.arrow()[0] is not first.arrow()[0]


def test_reading_needs_no_environment_once_it_began(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's setenv can hide a variable for a moment: the request would leave without a signature."""
    store = open_store(f"{s3}/environment")
    store.put("a", b"0123456789")
    ranges, target = store.ranges("a"), bytearray(4)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert ranges.read_into(2, [target], 4) and target == b"2345"
    with store.open("a") as file:
        assert file.read() == b"0123456789"


@pytest.mark.slow
def test_label_through_faulty_s3_gives_the_right_bytes(s3: str, tmp_path: Path) -> None:
    calm, shaken = Dataset(tmp_path / "calm"), Dataset(f"{s3}/{tmp_path.name}")
    brightness = load_labeler("simple_labelers:Brightness", {})
    declaration = declare(brightness)
    shards = [f"{number:06d}" for number in range(12)]
    for number, shard in enumerate(shards):
        pixels = np.full((32, 40, 3), 10 * number, np.uint8)
        row = {"id": shard, "image": encode(pixels), "width": 40, "height": 32, "source": f"{number}.png"}
        images = pa.Table.from_pylist([row], IMAGE_SCHEMA)
        for dataset in (calm, shaken):
            footer = write_shard(dataset.store, IMAGES, shard, images, [1], "recipe")
        labels = label_table(brightness, [{"id": shard, IMAGE_COLUMN: pixels}], sets=False)
        made_of = expected_recipe(declaration, shard, {IMAGES: {shard: footer}})
        assert made_of is not None
        write_shard(calm.store, "brightness", shard, labels, [1], made_of)
    shaken.declare(IMAGES, {"labeler": "ingest", "version": 1, "parameters": {}, "weights": "", "reads": []})
    shaken.describe("pictures", [ShardInfo(shard, 1) for shard in shards], [])
    with s3_proxy(os.environ["AWS_ENDPOINT_URL"], share=0.05) as proxy:
        done = onediffusion("label", shaken.uri, "simple_labelers:Brightness", AWS_ENDPOINT_URL=proxy.address)
        assert done.returncode == 0, done.stderr
        assert sum(proxy.counts[fault] for fault in FAULTS) >= 3, proxy.counts
    for shard in shards:
        name = f"brightness/{shard}.parquet"
        assert shaken.store.read(name) == calm.store.read(name)


def encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_endpoint_that_does_not_answer_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training whose storage is away for a while is tried again."""
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = open_store("s3://lab/away")
    with pytest.raises(WorkFailed, match="does not answer; check AWS_ENDPOINT_URL"):
        store.read("dataset.json")
    with dispensable():
        store.put("edges/index-new-1.parquet", b"")
    done = onediffusion("status", store.uri)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "does not answer" in done.stderr
