"""The file of tokens: who may come in, as it is now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dashboard_process import tokens_in

from model.inputs import InputError
from pipelines.dashboard.tokens import load_tokens


def test_deleted_line_revokes_token_and_sessions(tmp_path: Path) -> None:
    tokens = load_tokens(str(tmp_path / "tokens"))
    known = tokens_in(tmp_path / "tokens")
    session = tokens.open_session(known["operate"])
    assert tokens.session_role(session) == tokens.role_of(known["operate"]) == "operate"
    (tmp_path / "tokens").write_text(f"read {known['read']}\n")
    assert tokens.session_role(session) is None and tokens.role_of(known["operate"]) is None
    assert tokens.role_of(known["read"]) == "read"
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(InputError, match=r"--token-file .*/folder: cannot be kept there \(Is a directory\)"):
        load_tokens(str(tmp_path / "folder"))


def test_invalid_token_file_admits_nobody(tmp_path: Path) -> None:
    path, messages = tmp_path / "tokens", []
    tokens = load_tokens(str(path), messages.append)
    content, known = path.read_bytes(), tokens_in(path)
    session = tokens.open_session(known["operate"])

    def gets_in() -> bool:
        roles = {tokens.role_of(known["operate"]), tokens.session_role(session)}
        assert len(roles) == 1
        return roles == {"operate"}

    assert gets_in()
    for spoil, reason in (
        (lambda: path.chmod(0o644), "others can read these tokens"),
        (lambda: path.write_bytes(b""), "no token in it"),
        (lambda: path.write_bytes(b"\xff"), "can't decode"),
        (path.unlink, "No such file or directory"),
    ):
        messages.clear()
        spoil()
        assert not gets_in() and not gets_in()
        assert len(messages) == 1 and reason in messages[0], messages
        path.unlink(missing_ok=True)
        path.touch(0o600)
        path.write_bytes(content)
        assert gets_in()
    # As `grep -v … > new; mv new tokens` leaves it: others can read it, and its time may be any.
    (tmp_path / "new").write_text(f"read {known['read']}\n")
    os.utime(tmp_path / "new", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    (tmp_path / "new").rename(path)
    assert not gets_in() and tokens.role_of(known["read"]) is None


def test_token_file_must_be_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tokens"
    tokens = load_tokens(str(path))
    roles = {tokens.role_of(token) for token in tokens_in(path).values()}
    assert roles == {"read", "operate"} and tokens.role_of("") is None
    session = tokens.open_session(tokens_in(path)["read"])
    assert tokens.session_role(session) == "read" and tokens.session_role("x") is None
    path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        load_tokens(str(path))
    path.chmod(0o600)
    for text, message in (("admin " + "x" * 30, "line 1"), ("read short", "line 1"), ("# none\n", "no token in it")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_tokens(str(path))
