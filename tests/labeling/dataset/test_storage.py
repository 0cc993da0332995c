"""Stores on disk and S3: what they say of a user's mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing import NO_PATHS, told

from labeling.dataset import Dataset, open_store
from labeling.dataset.storage import S3Store
from labeling.dataset.storage.errors import explained
from model.inputs import InputError

NO_ADDRESSES = [*NO_PATHS, "", "s3://", "s3://a\0/b", "s3://a b/c", "s3://b/\ud800", "ftp://a"]


def test_missing_dataset_and_unwritable_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dataset there"):
        Dataset.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write there"):
        open_store(tmp_path / "file" / "dataset").put("dataset.json", b"{}")


def test_wrong_s3_credentials_are_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(f"{s3}/credentials")
    for operation in (
        lambda: store.files(),
        lambda: store.put("a", b""),
        lambda: store.read("a"),
        lambda: store.open("a"),
    ):
        with pytest.raises(InputError, match="refused these credentials"):
            operation()


def test_missing_bucket_is_named(s3: str) -> None:
    with pytest.raises(InputError, match="no such bucket"):
        open_store("s3://nowhere/x").files()


def test_number_of_a_shard_is_no_refusal_of_s3() -> None:
    cut = "When reading 'lab/d/depth/000403.parquet': AWS Error NETWORK_CONNECTION during GetObject: closed"
    refused = "When reading 'lab/d': AWS Error UNKNOWN (HTTP status 403) during HeadObject operation: no response body"
    with pytest.raises(OSError, match="NETWORK_CONNECTION"), explained("s3://lab/d"):
        raise OSError(cut)
    with pytest.raises(InputError, match="refused these credentials"), explained("s3://lab/d"):
        raise OSError(refused)


@pytest.mark.parametrize("name", NO_ADDRESSES, ids=ascii)
def test_impossible_addresses_are_told(name: Any) -> None:
    with pytest.raises(InputError):
        open_store(name)
    assert told(lambda: Dataset.open(name)) is None


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_stream_is_written_whole_or_not_at_all(place: str, tmp_path: Path, s3: str) -> None:
    """Of several parts of an upload; one that breaks leaves what was there."""
    store = open_store(tmp_path if place == "disk" else f"{s3}/stream").subfolder("below")
    parts = [bytes([number]) * (3 << 20) for number in range(7)]
    store.put_stream("file", (memoryview(part) for part in parts), 21 << 20)
    assert store.read("file") == b"".join(parts)
    store.put_stream("empty", iter(()), 0)
    assert store.read("empty") == b""

    def breaks() -> Iterator[bytes]:
        yield parts[0]
        raise ValueError("it breaks")

    for name in ("file", "other"):
        with pytest.raises(ValueError, match="it breaks"):
            store.put_stream(name, breaks(), 21 << 20)
    assert {name: entry.size for name, entry in store.walk().items()} == {"empty": 0, "file": 21 << 20}
    assert not list(tmp_path.rglob(".*"))


def test_parts_of_an_upload_that_nobody_ended_go_with_its_folder(s3: str) -> None:
    """As a process leaves them that is killed while it uploads."""
    store = open_store(f"{s3}/uploads")
    assert isinstance(store, S3Store)
    for key in ("uploads/step-1/shard", "uploads/step-12/shard"):
        upload = store.client.create_multipart_upload(Bucket="lab", Key=key)
        store.client.upload_part(Bucket="lab", Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"half")
    store.delete_tree("step-1")
    left = store.client.list_multipart_uploads(Bucket="lab", Prefix="uploads/")["Uploads"]
    assert [upload["Key"] for upload in left] == ["uploads/step-12/shard"]
