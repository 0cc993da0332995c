"""The command line, `onediffusion`."""

from __future__ import annotations


def main() -> None:
    """The entry point of the installed command and of `python -m pipelines`."""
    from pipelines.cli.app import main as run

    run()
