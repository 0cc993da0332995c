"""Stores on disk and S3: what they say of a user's mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeling.dataset import Dataset, open_store
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
