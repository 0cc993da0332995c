"""Stores on disk and S3: what they say of a user's mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeling.dataset import Dataset, open_store
from labeling.dataset.storage.errors import explained
from model.inputs import InputError


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
