"""A stand-in for a Kubernetes API server, and the backend that talks to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import ApiServer
from kuberay_objects import backend_for

from cluster.kubernetes.backend import KubernetesBackend


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.close()


@pytest.fixture
def backend(server: ApiServer, tmp_path: Path) -> KubernetesBackend:
    return backend_for(server, tmp_path)
