"""Budget tiers: each names a `top_k`, and says which clients it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from fedmoe.errors import ConfigError, Fault
from fedmoe.models.memory.stored import Frozen
from fedmoe.models.memory.subset import Subset
from fedmoe.section import Component, section
from fedmoe.seeds import numpy_rng


@section
class Tier:
    """Clients that can afford the same number of experts.

    Example:
        >>> Tier(top_k=2, frozen="int8", steps=10).memory_options
        'int8'
    """

    top_k: Annotated[int, Field(ge=1)]
    """Experts activated per token, at most the model's K; in training and in evaluation."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """Rank of its clients' adapters, at most `adapter.rank`, which it is when omitted."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps of its clients in a round; `training.steps` when omitted. With fewer steps
    clients of unlike k or rank can be compared on equal FLOPs; see `fedmoe check`."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Examples in one micro-batch of its clients; `training.batch_size` when omitted."""
    accumulation: Annotated[int, Field(ge=1)] | None = None
    """Micro-batches in one optimiser step; `training.accumulation` when omitted."""
    recompute: bool | None = None
    """As in `training`, which decides when it is omitted."""
    frozen: Frozen = "full"
    """The form of frozen experts on its devices, in training and evaluation: `full`, in the
    model's dtype, or as `int8` or `int4` with scales, which is lossy. LoRA stays in float32."""
    offload: bool = False
    """Keep the frozen experts in a file mapped into memory, or beside a GPU in main memory: less
    memory, more time, the same result. Saves memory where all tiers of a run with the same `frozen`
    ask for it."""
    subset: Subset | None = None
    """Keep a subset of each layer's experts, `{keep: 8}`, those that the client's own data activate
    most; all of them when omitted. In training and in evaluation, which takes the mean over the
    tier's first clients, each with its own subset. On the clients' own machines the frozen weights
    of all experts lie as with `offload`, and those of the kept are all that is read in training."""
    skipped: bool = False
    """Its clients take no part; the tier is evaluated. Set by `budget.name: auto` where a device
    has no room or no time for k = 1."""
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the clients that no tier lists by number; omit it in all tiers for equal shares."""
    clients: tuple[Annotated[int, Field(ge=0)] | str, ...] = ()
    """Clients of this tier: by number, or by name where the data come split by client."""

    def __post_init__(self) -> None:
        if self.subset is not None and self.subset.keep < self.top_k:
            raise ValueError(
                f"subset.keep is {self.subset.keep}, fewer than the top_k of {self.top_k} experts "
                "that each token activates; raise it, or lower top_k"
            )

    @property
    def memory_options(self) -> str:
        """Return its memory options for frozen experts in a few words; empty if there are none."""
        words = [self.frozen] if self.frozen != "full" else []
        if self.subset:
            words.append(f"{self.subset.keep} kept, others {self.subset.outcome}")
        return ", ".join([*words, *(["offload"] if self.offload else [])])

    @property
    def training_changes(self) -> dict[str, int | bool]:
        """Return the settings that its clients train with in place of those in `training`."""
        names = ("steps", "batch_size", "accumulation", "recompute")
        return {n: value for n in names if (value := getattr(self, n)) is not None}


class Budget(Component):
    """Base of budgets, which say how many experts each client activates.

    Example:
        >>> class OneStrong(Budget):
        ...     tiers = {"strong": Tier(top_k=8), "weak": Tier(top_k=1)}
        ...     def assign(self, num_clients, full_top_k, seed):
        ...         return ("strong", *["weak"] * (num_clients - 1))
        >>> OneStrong().assign(3, 8, seed=0)
        ('strong', 'weak', 'weak')
    """

    tiers: Any
    """Tiers by name, in the order reports show them."""
    default: str = ""
    """The tier of clients that are known by name and that no tier lists."""

    def resolved(self, full_top_k: int) -> dict[str, Tier]:
        """Return the tiers for a model whose tokens reach K experts."""
        return self.tiers

    def assign(self, num_clients: int, full_top_k: int, seed: int) -> tuple[str, ...]:
        """Return the tier of each client.

        Raises:
            ConfigError: the tiers do not fit the clients or the model.
        """
        raise NotImplementedError

    def tier_of(self, name: str, full_top_k: int, seed: int) -> str:
        """Return the tier of a client that is known by name, whoever else there is.

        The tier that lists it; else `default`; else one drawn by the tiers' shares.

        Raises:
            ConfigError: no tier lists it, and there is no other rule.
        """
        tiers = self.resolved(full_top_k)
        listed = [tier for tier, of in tiers.items() if name in map(str, of.clients)]
        if len(listed) > 1:
            path = f"budget.tiers.{listed[1]}.clients"
            raise ConfigError("budget", [Fault(path, f"{name!r} is also in {listed[0]!r}")])
        if listed or self.default:
            return listed[0] if listed else self.default
        weights = _weights(tiers.values())
        if not (total := sum(weights)):
            said = f"client {name!r} is in no tier; list it, or set budget.default"
            raise ConfigError("budget", [Fault("budget.tiers", said)])
        shares = [weight / total for weight in weights]
        return str(numpy_rng(seed, "budget", name).choice([*tiers], p=shares))

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield tiers that the adapter, the strategy or the model has no room for."""
        tiers = self.resolved(model.full_top_k if model else 1)
        yield from _rank_faults(tiers, experiment)
        if self.default and self.default not in tiers:
            said = f"{self.default!r} is not one of {', '.join(map(repr, tiers))}"
            yield Fault("budget.default", said)
        if model is None:
            return
        yield from self.over(model.full_top_k)
        for name, tier in tiers.items():
            for where, said in tier.subset.misfits(experiment, model) if tier.subset else ():
                yield Fault(f"budget.tiers.{name}.subset{where}", said)

    def over(self, full_top_k: int) -> list[Fault]:
        """Return a fault for each tier that asks for more experts than the model's K."""
        return []


@section
class Levels(Budget):
    """Fixed tiers, from the YAML."""

    name: Literal["levels"] = "levels"
    tiers: dict[str, Tier] = Field(default_factory=dict)
    """Tiers by name, in the order reports show them; none means every client activates all K."""
    default: str = ""
    """The tier of clients that are known by name and that no tier lists; drawn by share if empty.
    """

    def assign(self, num_clients: int, full_top_k: int, seed: int) -> tuple[str, ...]:
        """Return the tier of each client: listed ones first, the rest by share at random.

        Raises:
            ConfigError: a client is listed twice or does not exist, or a `top_k` is over K.
        """
        tiers = self.resolved(full_top_k)
        assigned: dict[int, str] = {}
        faults = self.over(full_top_k)
        for name, tier in tiers.items():
            path = f"budget.tiers.{name}"
            for client in tier.clients:
                if isinstance(client, str):
                    said = f"{client!r} is a name; here clients are 0..{num_clients - 1}"
                    faults.append(Fault(f"{path}.clients", said))
                    continue
                if client in assigned:
                    faults.append(
                        Fault(f"{path}.clients", f"client {client} is also in {assigned[client]!r}")
                    )
                if client >= num_clients:
                    faults.append(
                        Fault(
                            f"{path}.clients",
                            f"there is no client {client}; clients are 0..{num_clients - 1}",
                        )
                    )
                assigned[client] = name
        rest = [c for c in range(num_clients) if c not in assigned]
        weights = _weights(tiers.values())
        if rest and not any(weights) and all(t.clients for t in tiers.values()):
            faults.append(
                Fault(
                    "budget.tiers",
                    f"client {rest[0]} is in no tier; list it, or give a tier a share",
                )
            )
        if faults:
            raise ConfigError("budget", faults)
        order = numpy_rng(seed, "budget").permutation(len(rest))
        for name, part in zip(tiers, _apportion(len(rest), weights), strict=True):
            for i in order[part]:
                assigned[rest[i]] = name
        return tuple(assigned[c] for c in range(num_clients))

    def over(self, full_top_k: int) -> list[Fault]:
        """Return a fault for each tier that asks for more experts than the model's K."""
        said = f"is over the model's top_k of {full_top_k}"
        return [
            Fault(f"budget.tiers.{name}.top_k", f"{tier.top_k} {said}")
            for name, tier in self.tiers.items()
            if tier.top_k > full_top_k
        ]

    def resolved(self, full_top_k: int) -> dict[str, Tier]:
        """Return the tiers, or one tier of full budget if the YAML names none."""
        return self.tiers or {"full": Tier(top_k=full_top_k, share=1.0)}

    def __post_init__(self) -> None:
        shares = [t.share for t in self.tiers.values() if t.share is not None]
        if shares and abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"the tiers' shares sum to {sum(shares):g}; expected 1")


def _weights(tiers: Iterable[Tier]) -> list[float]:
    """Return the weight of each tier for clients that none lists: shares, or equal ones.

    They are 0 where every tier lists its clients and none has a share.
    """
    tiers = list(tiers)
    shares = [tier.share for tier in tiers]
    if all(tier.share is None and tier.clients for tier in tiers):
        return [0.0] * len(tiers)
    return [1.0 if share is None and not any(shares) else share or 0.0 for share in shares]


def _rank_faults(tiers: Mapping[str, Tier], experiment: Any) -> Iterator[Fault]:
    """Yield ranks over the adapter's, and unlike ranks that the strategy cannot combine."""
    most, strategy = experiment.adapter.rank, experiment.aggregation
    ranks = {name: tier.rank or most for name, tier in tiers.items()}
    for name, rank in ranks.items():
        if rank > most:
            said = f"{rank} is over adapter.rank, which is {most}"
            yield Fault(f"budget.tiers.{name}.rank", said)
    lower = any(rank < most for rank in ranks.values())
    if not lower and experiment.adapter.scale != "alpha_over_rank":
        said = f"{experiment.adapter.scale!r} has no effect where every tier has adapter.rank"
        yield Fault("adapter.scale", f"{said}; leave it out, or give a tier a lower rank")
    if lower and not strategy.mixed_ranks:
        from fedmoe.aggregation import MIXED_RANKS  # for this sentence alone

        unlike = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
        yield Fault(
            "budget.tiers",
            f"ranks ({unlike}) below adapter.rank, {most}, are what aggregation.name "
            f"{strategy.name!r} cannot combine; {', '.join(MIXED_RANKS)} can",
        )


def _apportion(count: int, weights: list[float]) -> list[slice]:
    """Split `count` by weights, by largest remainder: the parts always sum to `count`."""
    total = sum(weights) or 1.0
    exact = [count * w / total for w in weights]
    sizes = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (sizes[i] - exact[i], i))
    for i in by_remainder[: count - sum(sizes) if sum(weights) else 0]:
        sizes[i] += 1
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
