"""Accounting for a Slurm of a test: slurmdbd with a MariaDB of its own, both on loopback, for the time of the test."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
from pathlib import Path

import pytest

PROGRAMS = ("slurmdbd", "mariadbd", "sacct", "sacctmgr")
# The database asks nobody for a password: it holds nothing but jobs of a test, and is not reached from outside.
DATABASE = (
    *("mariadbd", "--no-defaults", "--bind-address=127.0.0.1", "--skip-grant-tables", "--skip-name-resolve"),
    *("--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0"),
)
CONFIGURATION = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=root
StorageLoc=accounting
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""
# Lines of slurm.conf. The "password" is where munged listens.
SETTINGS = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
"""


def need_accounting() -> None:
    """Skip where slurmdbd or MariaDB is not installed; in CI they must be."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    line = f"{', '.join(missing)} not found: apt-get install slurmdbd mariadb-server-core"
    if missing and os.environ.get("CI") == "true":
        pytest.fail(line)
    if missing:
        pytest.skip(line)


def database_command(folder: Path, port: int) -> tuple[str, ...]:
    """The command of a database in a folder, on a port."""
    (folder / "database").mkdir()
    user = pwd.getpwuid(os.getuid()).pw_name
    own = (f"--datadir={folder}/database", f"--socket={folder}/database.socket", f"--pid-file={folder}/database.pid")
    return (*DATABASE, *own, f"--port={port}", f"--user={user}")


def write_configuration(folder: Path, port: int, database: int) -> None:
    """Write slurmdbd.conf, which only its user may read."""
    user = pwd.getpwuid(os.getuid()).pw_name
    file = folder / "slurmdbd.conf"
    file.touch(mode=0o600)
    file.write_text(CONFIGURATION.format(folder=folder, port=port, database=database, user=user))


def listens(port: int) -> bool:
    """Whether something on this machine listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
