"""Target files: what all kinds of them refuse."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.target import parse_target
from model.inputs import InputError

KINDS = {
    "local": {},
    "ray": {},
    "kubernetes": {"image": "registry/onediffusion:1"},
    "slurm": {"cpus_per_node": 8},
}


@pytest.mark.parametrize("kind", KINDS)
def test_secret_in_environment_is_refused(kind: str) -> None:
    def given(**environment: str) -> Any:
        return parse_target({"type": kind, **KINDS[kind], "environment": environment}, "target.yaml")

    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD", "AZURE_STORAGE_KEY", "S3_SECRETKEY", "DB_PASS"):
        with pytest.raises(InputError, match=f"{name} looks like a secret.*leave it in the shell") as error:
            given(**{name: "wJalr"})
        assert "wJalr" not in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="a password in an address looks like a secret") as error:
        given(HTTPS_PROXY="http://me:wJalr@proxy:3128")
    assert "wJalr" not in str(error.value)
    paths = {
        "HTTPS_PROXY": "http://proxy:3128",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/token",
        "TOKENIZERS_PARALLELISM": "false",
    }
    assert given(**paths).environment == paths


def test_secret_in_slurm_lines_is_refused() -> None:
    for values in ({"setup": ["export AWS_SECRET_ACCESS_KEY=wJalr"]}, {"options": ["--export=ALL,HF_TOKEN=wJalr"]}):
        with pytest.raises(InputError, match=r"looks like a secret.*leave it in the shell") as error:
            parse_target({"type": "slurm", "cpus_per_node": 8, **values}, "target.yaml")
        assert "wJalr" not in str(error.value)
    lines = {"setup": ["module load cuda/12.8", "export NCCL_DEBUG=INFO"], "options": ["--mail-type=FAIL"]}
    assert parse_target({"type": "slurm", "cpus_per_node": 8, **lines}, "target.yaml").setup == lines["setup"]
