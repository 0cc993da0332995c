"""Queries to Dagster's web servers on their socket files: whether the definitions are loaded, and loading them anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.inputs import one_line
from pipelines.dashboard.jobs_page import LOCATION
from pipelines.dashboard.tokens import Role

LOADED, FAILED = "RepositoryLocation", "PythonError"
_STATE = "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"
_RELOAD = """mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename
  ... on WorkspaceLocationEntry { locationOrLoadError { __typename ... on PythonError { message } } } } }"""
# What a web server makes once of the definitions: the graph of all assets, and the job that makes them.
_PREPARE = "{ assetNodes { requiredResources { resourceKey } } }"


@dataclass(frozen=True)
class DagsterClient:
    """Asks Dagster's web servers. sockets: what the web server of each role listens on."""

    sockets: Mapping[Role, Path]

    async def states(self) -> list[str]:
        """How each web server sees the definitions: LOADED, FAILED, or "" where it does not answer yet."""
        return [_state(await self._ask(role, _STATE)) for role in self.sockets]

    async def reload(self) -> str:
        """Load the definitions again; returns "", or in one line what is wrong with them."""
        answer = await self._ask("operate", _RELOAD, {"name": LOCATION})
        entry = (answer or {}).get("reloadRepositoryLocation") or {}
        problem = (entry.get("locationOrLoadError") or {}).get("message") or ("" if entry else "no answer")
        if not problem:
            await self.prepare()
        return one_line(problem)

    async def prepare(self) -> None:
        """Have the web servers make what the first page of an asset would wait for: of a lab's 1,400, seconds."""
        for role in self.sockets:
            await self._ask(role, _PREPARE)

    async def _ask(self, role: Role, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """The data of an answer; None where there is none."""
        from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector

        connector = UnixConnector(path=str(self.sockets[role]))
        try:
            async with (
                ClientSession(connector=connector, timeout=ClientTimeout(total=60)) as session,
                session.post("http://dagster/graphql", json={"query": query, "variables": variables or {}}) as answer,
            ):
                data: dict[str, Any] | None = (await answer.json()).get("data")
                return data
        except (ClientError, OSError, TimeoutError):
            return None


def _state(answer: dict[str, Any] | None) -> str:
    entries = ((answer or {}).get("workspaceOrError") or {}).get("locationEntries") or []
    states = [str((entry.get("locationOrLoadError") or {}).get("__typename", "")) for entry in entries]
    return states[0] if states else ""
