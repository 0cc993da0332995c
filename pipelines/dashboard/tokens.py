"""Tokens that admit people to the dashboard, each with a role, in a file that its owner alone can read."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from model.inputs import InputError

Role = Literal["read", "operate"]
ROLES: tuple[Role, ...] = ("read", "operate")
SESSION_SECONDS = 12 * 3600.0
_HEADER = "# One line a token: its role (read or operate), a blank, the token. Delete a line to take it back.\n"


@dataclass
class Tokens:
    """Digests of the tokens in a file, with their roles, and the sessions that were opened with them.

    The file is read again when it has changed, so that deleting a line revokes its token and its sessions at once.
    say: called with the reason when nobody can sign in.
    """

    path: Path
    say: Callable[[str], None] = print
    _digests: list[tuple[Role, bytes]] = field(default_factory=list)
    _file: tuple[int, ...] | None = None  # what identifies the file that was read
    _trouble: str = ""
    _sessions: dict[bytes, tuple[bytes, float]] = field(default_factory=dict)

    @property
    def digests(self) -> list[tuple[Role, bytes]]:
        """The file's tokens as it is now; none while it is invalid, so that nobody stays in who was taken out."""
        trouble = ""
        try:
            now = self.path.stat()
            # Times alone do not identify a file: another may be moved there with an older one, or only its mode change.
            file = (now.st_mtime_ns, now.st_ctime_ns, now.st_ino, now.st_size, now.st_mode)
            if file == self._file:
                return self._digests
            self._digests, self._file = _read(self.path), file
        except (OSError, InputError, UnicodeDecodeError) as error:
            self._digests, self._file = [], None
            trouble = f"{self.path}: {error.strerror}" if isinstance(error, OSError) else str(error)
        if trouble and trouble != self._trouble:
            self.say(f"nobody gets in by a token until this is mended: {trouble}")
        self._trouble = trouble
        return self._digests

    def role_of(self, token: str) -> Role | None:
        """The role of a token; all are compared, each in constant time."""
        digest = _digest(token)
        match: Role | None = None
        for role, known in self.digests:
            if hmac.compare_digest(digest, known):
                match = role
        return match

    def open_session(self, token: str) -> str:
        """Open a session with a token; returns a secret for a cookie, so that the token itself is sent only once."""
        now = time.monotonic()
        self._sessions = {key: value for key, value in self._sessions.items() if value[1] > now}
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = (_digest(token), now + SESSION_SECONDS)
        return session

    def session_role(self, session: str) -> Role | None:
        """The role of the token that a session was opened with, None when it is over."""
        # Sessions are looked up by digest, so that the time it takes reveals nothing of the secret.
        token, until = self._sessions.get(_digest(session), (b"", 0.0))
        if time.monotonic() >= until:
            return None
        return next((role for role, known in self.digests if known == token), None)

    def close_session(self, session: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(session), None)


def load_tokens(file: str, say: Callable[[str], None] = print) -> Tokens:
    """The tokens in a file; where there is none, it is made with one of each role.

    say: called later with the reason when nobody can sign in any more. Raises InputError for a file that others can
    read, or that is invalid.
    """
    path = Path(file).expanduser()
    try:
        if not path.exists():
            _create(path)
        _read(path)
    except UnicodeDecodeError:
        raise InputError(f"--token-file {path}: not a text file; name another, and it is made") from None
    except OSError as error:
        raise InputError(
            f"--token-file {path}: cannot be kept there ({error.strerror}); name a file of yours"
        ) from None
    return Tokens(path, say)


def _read(path: Path) -> list[tuple[Role, bytes]]:
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
    return digests


def _create(path: Path) -> None:
    """Write a new token for each role to a file that only this user can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{role} {secrets.token_urlsafe(32)}\n" for role in ROLES)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(_HEADER + lines)


def _digest(secret: str) -> bytes:
    # Tokens are long and random: a fast digest is as good as a slow one.
    # A header may hold any bytes, which arrive here as surrogates.
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
