"""The command line, `onediffusion`."""

from __future__ import annotations


def main() -> None:
    """The entry point; see `pipelines.cli.app`."""
    from pipelines.cli.app import main as run

    run()
