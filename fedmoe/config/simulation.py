"""The section `simulation`: how this machine carries out a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from fedmoe.errors import Fault
from fedmoe.models.tasks import causal_fault
from fedmoe.section import section


@section
class Simulation:
    """The use of this machine by a simulation; nothing but passes changes the result."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that train clients side by side, one thread each; 1 trains in this process, and
    so does a GPU, whatever this says."""
    clients_per_pass: Annotated[int, Field(ge=1)] = 1
    """Clients that train side by side in one forward and backward pass, each with its own adapter,
    rows and optimiser: frozen weights are read once for all. They are of tiers of one rank and form
    of frozen experts. It pays where a client's batches are small; it takes the memory of all their
    activations and adapters, which `fedmoe plan` counts, and leaves workers idle that a round has
    no pass for. Results differ by rounding from those of clients alone."""
    job_seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which a worker that has not answered counts as dead: it is killed and its job
    done again, three times at most. Without one, a worker that hangs is waited for; it holds for
    every job, so give many times what the longest client or evaluation takes."""
    folder: str = "runs"
    """Where run folders are made, each named after its experiment."""

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield why clients cannot train side by side, if they are to."""
        if self.clients_per_pass == 1:
            return
        reasons = list(_apart(experiment))
        if model is not None and (fault := causal_fault(model.model)):
            reasons.append(fault)
        if (experiment.clients_per_round or self.clients_per_pass) < self.clients_per_pass:
            reasons.append(f"{self.clients_per_pass} is over clients_per_round; lower it")
        yield from (Fault("simulation.clients_per_pass", reason) for reason in reasons)


def _apart(e: Any) -> Iterator[str]:
    """Yield what of an experiment makes its clients train one after another."""
    subsets = [name for name, tier in getattr(e.budget, "tiers", {}).items() if tier.subset]
    found = {
        f"aggregation.name {e.aggregation.name!r} takes updates one by one": (
            e.aggregation.asynchronous
        ),
        f"aggregation.name {e.aggregation.name!r} changes routers": e.aggregation.changes_routers,
        "adapter.router trains routers": e.adapter.router,
        "adapter.dropout draws from each client's stream": e.adapter.dropout > 0,
        f"gating.name {e.gating.name!r} may let tokens of others decide": not e.gating.own,
        f"losses.{', '.join(e.losses.requested)} are of one client's tokens": e.losses.requested,
        "training.local_step trains one client": e.training.local_step is not None,
        f"budget.tiers.{', '.join(subsets)}.subset is each client's own": subsets,
    }
    for why, there in found.items():
        if there:
            yield f"cannot be honoured: {why}; use 1, or leave that out"
