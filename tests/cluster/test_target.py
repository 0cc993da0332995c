"""Target files: what all kinds of them refuse."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.target import parse_target
from model.errors import InputError

KINDS = {
    "local": {},
    "ray": {},
    "kubernetes": {"image": "registry/onediffusion:1"},
    "slurm": {"cpus_per_node": 8},
}


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_among_variables_are_refused(kind: str) -> None:
    def given(**environment: str) -> Any:
        return parse_target({"type": kind, **KINDS[kind], "environment": environment}, "target.yaml")

    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD"):
        with pytest.raises(InputError, match=f"{name} looks like a secret.*leave it in the shell") as error:
            given(**{name: "wJalr"})
        assert "wJalr" not in str(error.value)
        assert "\n" not in str(error.value)
    paths = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/token", "TOKENIZERS_PARALLELISM": "false"}
    assert given(**paths).environment == paths
