"""The books of who may talk to which host, kept by an actor of Ray for all processes of an ingest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from labeling.sources.addresses.sharing import Grant, HostShares


@dataclass(frozen=True)
class RayShares:
    """What the processes of an ingest ask. name: of the books, by which equal ones are known."""

    name: str
    actor: Any = field(compare=False)

    def exchange(self, holder: str, held: Mapping[str, int], wanted: Mapping[str, int], room: int) -> Grant:
        """See `HostShares.exchange`. Books that are lost are begun anew, from what each process says it holds."""
        import ray

        grant: Grant = ray.get(self.actor.exchange.remote(holder, held, wanted, room))
        return grant


def shares_on_ray(connections: int) -> RayShares:
    """New books on the Ray connected to; they end with this process."""
    import ray

    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    actor = ray.remote(HostShares).options(**options).remote(connections)
    return RayShares(actor._actor_id.hex(), actor)
