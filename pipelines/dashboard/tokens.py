"""Who may come in: tokens with a role each, in a file that its owner alone can read."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from model.errors import InputError

Role = Literal["read", "operate"]
ROLES: tuple[Role, ...] = ("read", "operate")
SESSION_SECONDS = 12 * 3600.0
_HEADER = "# One line a token: its role (read or operate), a blank, the token. Delete a line to take it back.\n"


@dataclass
class Tokens:
    """Digests of the tokens, with their roles; and the sessions that were opened with them."""

    digests: list[tuple[Role, bytes]]
    _sessions: dict[bytes, tuple[Role, float]] = field(default_factory=dict)

    def role_of(self, token: str) -> Role | None:
        """The role of a token; all are compared, each in constant time."""
        digest = _digest(token)
        found: Role | None = None
        for role, known in self.digests:
            if hmac.compare_digest(digest, known):
                found = role
        return found

    def open_session(self, role: Role) -> str:
        """A secret for a cookie, so that the token itself is sent once only."""
        now = time.monotonic()
        self._sessions = {key: value for key, value in self._sessions.items() if value[1] > now}
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = (role, now + SESSION_SECONDS)
        return session

    def session_role(self, session: str) -> Role | None:
        """The role that a session was opened with, None when it is over."""
        # Looked up by digest: how long that takes tells nothing of the secret.
        role, until = self._sessions.get(_digest(session), (None, 0.0))
        return role if time.monotonic() < until else None

    def close_session(self, session: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(session), None)


def load_tokens(place: str) -> Tokens:
    """The tokens in a file; where there is none, it is made with one of each role.

    Raises InputError for a file that others can read, or that is not as it should be.
    """
    path = Path(place).expanduser()
    if not path.exists():
        _make(path)
    mode = path.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError(f"{path}: others can read these tokens; make them yours alone with `chmod 600 {path}`")
    digests: list[tuple[Role, bytes]] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        role = next((role for role in ROLES if role == words[0]), None)
        if role is None or len(words) != 2 or len(words[1]) < 20:
            raise InputError(f"{path}: line {number}: write `read TOKEN` or `operate TOKEN`, of 20 or more letters")
        digests.append((role, _digest(words[1])))
    if not digests:
        raise InputError(f"{path}: no token in it; delete it, and it is made anew")
    return Tokens(digests)


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{role} {secrets.token_urlsafe(32)}\n" for role in ROLES)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(_HEADER + lines)


def _digest(secret: str) -> bytes:
    # Tokens are long and random: a fast digest is as good as a slow one.
    return hashlib.sha256(secret.encode()).digest()
