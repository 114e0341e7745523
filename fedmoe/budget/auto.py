"""Automatic budgets: every tier's k is what its device has room and time for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from fedmoe.budget.levels import Budget, Levels, Tier
from fedmoe.budget.model import Constants
from fedmoe.budget.plan import SHARE, Plan, plan_for
from fedmoe.budget.probe import Machine
from fedmoe.budget.shape import shape_of
from fedmoe.budget.work import HowTrained, work_on
from fedmoe.errors import ConfigError, Fault
from fedmoe.messages.codec import most_bytes
from fedmoe.models.memory.stored import Frozen
from fedmoe.models.memory.subset import LeftOut
from fedmoe.models.tasks import causal_fault
from fedmoe.section import section

if TYPE_CHECKING:
    from fedmoe.aggregation.strategy import Strategy
    from fedmoe.data.text import Tokens
    from fedmoe.devices import Device
    from fedmoe.messages.compression import Compression
    from fedmoe.models.adapted import AdaptedModel

Count = Annotated[int, Field(ge=1)]

GPU = Constants(fixed_bytes=7.7e7)
"""Time and memory of a step beside arithmetic where the device itself was not measured; taken
with OLMoE-1B-7B's shape on an H100."""
CPU = Constants(slack=12.5, fixed_bytes=5e7)
"""The same, as measured on Linux with two models."""
RESTORE_FLOPS: dict[Frozen, float] = {"int8": 60.0, "int4": 110.0}
"""FLOPs that take as long as making one frozen value from its code, where nothing was measured on
the device itself. On one core 20 to 170 and 36 to 240 were measured, in layers of 256 to 2,048."""
GPU_RESTORE_FLOPS: dict[Frozen, float] = {"int8": 1100.0, "int4": 1600.0}
"""The same on a GPU, whose memory is slower than its arithmetic by far; measured on an H100."""
GPU_LAYER_SECONDS = 6e-3
"""Time of a layer's micro-batch on a GPU beside arithmetic: the processor starts some hundred
kernels. Measured with OLMoE-1B-7B's shape on an H100: of steps of 4 to 83 TFLOP 80
to 100 ms went there, in 16 layers."""
DISK_BYTES_PER_SECOND, BUS_BYTES_PER_SECOND = 1e9, 2.5e10
"""Speed of offloaded weights, from a disk or from main memory to a GPU: assumed, not measured,
a solid-state disk's reading and four fifths of 16 lanes of PCIe 4."""


@section
class AutoTier:
    """Clients on like devices."""

    most_top_k: Count | None = None
    """The plan's `top_k` is at most this; the model's K when omitted."""
    rank: Count | None = None
    """As in a fixed tier, and so are the fields below."""
    steps: Count | None = None
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    clients: tuple[Annotated[int, Field(ge=0)] | str, ...] = ()


@section
class Auto(Budget):
    """Tiers whose `top_k` is planned from their device's memory, speed and link."""

    name: Literal["auto"] = "auto"
    tiers: dict[str, AutoTier] = Field(default_factory=dict)
    """Tiers by name, each with a device in `devices`; none means one tier, `full`."""
    default: str = ""
    """The tier of clients that are known by name and that no tier lists; drawn by share if empty.
    """
    memory_share: Annotated[float, Field(gt=0, le=1)] = SHARE
    """Share of a device's free memory that a plan may fill."""
    deadline_seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds from a task's sending to its update's arrival; no deadline when omitted. On a Flower
    node that plans for itself the time that the server waits for its reply counts, too."""
    downlink_bytes_per_second: Annotated[float, Field(gt=0)] | None = None
    """For a node that plans for itself (on Flower, with no `devices`), set in its own overrides:
    messages take no time when omitted. A device's profile says it elsewhere."""
    uplink_bytes_per_second: Annotated[float, Field(gt=0)] | None = None
    """The same, towards the server."""

    def resolved(self, full_top_k: int) -> dict[str, Tier]:
        """The tiers before they are planned: each with the most that it is allowed."""
        return {
            name: Tier(
                top_k=min(tier.most_top_k or full_top_k, full_top_k),
                rank=tier.rank,
                steps=tier.steps,
                share=tier.share,
                clients=tier.clients,
            )
            for name, tier in (self.tiers or {"full": AutoTier(share=1.0)}).items()
        }

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield what any budget does, and models whose work cannot be predicted."""
        yield from super().faults(experiment, model)
        if model is not None and (fault := causal_fault(model.model)):
            yield Fault("budget.name", f"'auto' {fault}")

    def assign(self, num_clients: int, full_top_k: int, seed: int) -> tuple[str, ...]:
        """The tier of each client; see `Levels.assign`."""
        return Levels(tiers=self.resolved(full_top_k)).assign(num_clients, full_top_k, seed)

    def fixed(self, plans: Mapping[str, Plan], full_top_k: int) -> Levels:
        """The tiers as planned, from now on fixed.

        A tier that nothing fits keeps k = 1, at which it is evaluated, and sits out.

        Raises:
            ConfigError: every tier would sit out.
        """
        tiers = {}
        for name, tier in self.resolved(full_top_k).items():
            plan = plans[name]
            work = (plan.choice or plan.options[0]).work
            tiers[name] = Tier(
                top_k=plan.top_k or 1,
                rank=tier.rank,
                steps=tier.steps,
                share=tier.share,
                clients=tier.clients,
                batch_size=work.batch_size,
                accumulation=work.accumulation,
                recompute=work.recompute,
                frozen=work.frozen,
                offload=work.offload,
                subset=work.subset,
                skipped=not plan.top_k,
            )
        if all(tier.skipped for tier in tiers.values()):
            faults = [Fault(f"budget.tiers.{n}", " ".join(plans[n].reasons)) for n in tiers]
            raise ConfigError("budget", faults)
        return Levels(tiers=tiers, default=self.default)

    def __post_init__(self) -> None:
        self.resolved(1)  # pydantic checks each; the shares are checked together, by Levels
        Levels(tiers=self.resolved(1))


def analytic(machine: Machine, num_layers: int) -> Constants:
    """The constants of a machine of stated speed, on which nothing was measured.

    Memory can be trusted; seconds are as good as the profile's utilisation, which large micro-
    batches reach.
    """
    assert machine.flops, machine
    bare, restore = (GPU, GPU_RESTORE_FLOPS) if machine.on_gpu else (CPU, RESTORE_FLOPS)
    each = 1 / machine.flops
    return Constants(
        fixed_bytes=bare.fixed_bytes,
        slack=bare.slack,
        seconds_per_flop=each,
        seconds_per_step=num_layers * GPU_LAYER_SECONDS * machine.on_gpu,
        seconds_per_offloaded_byte=offload_rate(machine),
        seconds_per_restored={frozen: flops * each for frozen, flops in restore.items()},
    )


def offload_rate(machine: Machine) -> float:
    """Seconds that a machine is taken to wait for one byte of offloaded weights."""
    return 1 / (BUS_BYTES_PER_SECOND if machine.on_gpu else DISK_BYTES_PER_SECOND)


def tier_plans(
    budget: Auto,
    model: AdaptedModel,
    rows: Sequence[Tokens],
    training: HowTrained,
    devices: Mapping[str, Device],
    strategy: Strategy,
    upload: Compression,
    outcomes: tuple[LeftOut, ...] = ("merge", "drop"),
) -> dict[str, Plan]:
    """The plan of every tier's device, by arithmetic alone: the same on every machine.

    Args:
        rows: all clients' examples; memory goes by the longest, time by their mean.
        outcomes: what may become of experts outside a subset.

    Raises:
        ConfigError: there are no devices to plan for.
    """
    if not devices:
        raise ConfigError(
            "budget",
            [
                Fault(
                    "devices",
                    "missing: budget.name 'auto' plans for devices; give every tier one, as "
                    "configs/auto_budget.yaml does",
                )
            ],
        )
    plans = {}
    for name, tier in budget.resolved(model.full_top_k).items():
        layouts = strategy.layouts(model.layout.with_rank(tier.rank or model.layout.rank), 1)
        machine = Machine.of_device(devices[name])
        sizes = most_bytes(layouts.task, layouts.update, upload)
        work = replace(work_on(rows, training, *sizes), steps=tier.steps or training.steps)
        plans[name] = plan_for(
            shape_of(model, layouts.model, on_gpu=machine.on_gpu),
            work,
            machine,
            analytic(machine, model.layout.num_layers),
            deadline_seconds=budget.deadline_seconds,
            share=budget.memory_share,
            most_top_k=tier.top_k,
            outcomes=outcomes,
        )
    return plans
