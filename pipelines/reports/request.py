"""The page that a person or a job asks for: of a dataset, of a run, or of a step of one."""

from __future__ import annotations

from model.inputs import InputError


def requested_page(
    uri: str, where: str | None = None, beside: str | None = None, replay_step: int | None = None
) -> str:
    """Write the page, and return its address. replay_step: of `pipelines.reports.replay`; the others: of `report`.

    Raises InputError as they do, and for options that do not go together.
    """
    if replay_step is None:
        from pipelines.reports.page import report

        return report(uri, where, beside)
    if where is not None or beside is not None:
        raise InputError("--replay-step shows the samples of one step alone; leave --where and --with out")
    from pipelines.reports.replay import replay

    return replay(uri, replay_step)
