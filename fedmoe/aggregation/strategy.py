"""The hooks of a strategy: what travels, what a client trains and stores, how updates combine.

Every hook has FedAvg's answer as its default; a strategy overrides those in which it differs.

One round, in the order of the calls:
    server   `send` the global state to a client, in the layout `task`
    client   `local`: put it into the model (`model`), train a part of it (`trained`),
             return what moved (`update`), keep what is its own (`own`)
    server   `combine` the updates into the next global state
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, cut, place, resized
from fedmoe.aggregation.narrow_backward import ChosenBackward, NarrowBackward
from fedmoe.aggregation.server_optimizer import Memory, Rule, step_values
from fedmoe.errors import Fault
from fedmoe.messages.records import Task, Update
from fedmoe.section import Component


@dataclass(frozen=True)
class Layouts:
    """The layouts that a client of one rank receives, computes with, trains, sends and keeps."""

    task: Layout
    model: Layout
    trained: Layout
    update: Layout
    own: Layout | None = None
    """Kept between rounds; such a client needs a folder."""

    @classmethod
    def all(cls, plain: Layout) -> Layouts:
        """The same for everything."""
        return cls(plain, plain, plain, plain)


class Local:
    """One client's round under a strategy; `finish` may leave something to keep in `own`."""

    backward: NarrowBackward | ChosenBackward | None = None
    """Chooses the experts that have gradients; None: all that tokens reach."""
    mass: Float[Tensor, "layers experts"] | None = None
    """The sum of tokens' softmax over experts, of modulated routers, since the round began."""

    def __init__(self, layouts: Layouts, start: Adapter, own: Adapter | None = None) -> None:
        self.layouts, self.start, self.own = layouts, start, own
        self.before = start
        """The start of training, in the layout `trained`."""
        self.whole = layouts.trained == layouts.model
        """True if training moves every value of the model's adapter."""
        if not self.whole:
            self.before = cut(start, layouts.trained, last=True)

    def write(self, theta: Adapter, model: Adapter) -> None:
        """Put the trained values into the model's adapter, whose last components they are."""
        place(theta, model, last=True)

    def pull(self, grad: Adapter) -> Adapter:
        """The gradient of the trained values, from that of the model's adapter."""
        return cut(grad, self.layouts.trained, last=True)

    def correct(
        self,
        grad: Float[Tensor, " trained"],
        theta: Float[Tensor, " trained"],
        counts: Int[Tensor, "layers experts"],
    ) -> None:
        """Change a step's gradient in place, before it is clipped; `counts` are of the step."""

    def finish(self, after: Adapter, counts: Int[Tensor, "layers experts"]) -> Adapter:
        """Return what is sent, in the layout `update`: the change of the trained values it names.

        `counts` are of the whole round; of experts without tokens nothing is kept or sent.
        """
        moved = after - self.before
        return moved if self.layouts.update == moved.layout else cut(moved, self.layouts.update)


@runtime_checkable
class Aggregator(Protocol):
    """The part of a strategy that makes the next state; others may stand in its place."""

    def combine(
        self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0
    ) -> Adapter: ...
    def extra_state(self, state: Layout) -> Layout | None: ...
    def discount(self, update: Update, staleness: int) -> Update: ...

    moves_alone: ClassVar[bool]

    def step(
        self, rule: Rule, old: Adapter, proposed: Adapter, memory: Memory
    ) -> tuple[Adapter, Memory]: ...


class Strategy(Component):
    """Base of all strategies: the hooks as FedAvg answers them, and traits.

    A trait claims a law, which the contract suite (`tests/support/conformance.py`) then tests, or
    asks something of the rest of an experiment, which `faults` then refuses where it is missing.
    Nothing outside a strategy's file asks for more than these.

    Example:
        >>> from fedmoe.aggregation import FedAvg
        >>> class Halved(FedAvg):
        ...     def combine(self, adapter, updates, num_clients=0):
        ...         mean = super().combine(adapter, updates, num_clients)
        ...         return Adapter(adapter.layout, (adapter.flat + mean.flat) / 2)
        >>> issubclass(Halved, Strategy)
        True
    """

    name: Any
    """The name in YAML."""
    linear: ClassVar[bool] = False
    """Claims that the next state is the old one plus a weighted mean of what clients sent, with
    weights that do not depend on its values: the move of a sum of updates is the sum of moves."""
    size_weighted: ClassVar[bool] = False
    """Claims that clients count by their size: one of size 2n as two of size n with the same
    update, one of size 0 not at all."""
    exact: ClassVar[bool] = False
    """Claims that the state's product is the weighted mean of the clients' products BA, as long as
    the ranks that it is kept at suffice."""
    mixed_ranks: ClassVar[bool] = False
    """Claims that clients of unlike ranks can be combined: equal products give that product."""
    maskable: ClassVar[bool] = False
    """Claims that the next state is a ratio of two sums over clients, each of whose terms the
    client can form alone: `weigh(update)` times its update, and `weigh(update)`. The server then
    needs the sums alone, which secure aggregation can give it without the terms."""
    personal: ClassVar[bool] = False
    """Clients keep a part of the model: there is no common one, and each is scored with its own
    part. Without it, claims that equal updates of all clients are the next state."""
    asynchronous: ClassVar[bool] = False
    """The server steps by updates as they arrive (`updates_per_step`), late ones
    discounted (`discount`), not by rounds. Claims that an update on time is worth all of itself,
    and a later one no more than an earlier one."""
    moves_alone: ClassVar[bool] = False
    """The state moves in a round without updates, too."""
    changes_routers: ClassVar[bool] = False
    """The state holds more than adapters and trained routers: something that changes what routers
    choose. They must then take a softmax, and be left alone by everything else."""
    corrects: ClassVar[bool] = False
    """Clients change the gradients of their steps (`Local.correct`)."""
    continues: ClassVar[bool] = True
    """A value that a client sends means the same in the next round: else what an upload left out
    could not be added there. Claims that clients send the same tensors in every round."""
    warm: ClassVar[Literal["sent", "here", "never"]] = "sent"
    """How clients get an adapter that a run starts from (`adapter.start`): with the state that they
    are `sent`; `here`: a part of it as the run's first adapter, in one process alone; or `never`.
    Claims, unless never, that the first state gives its product."""
    averages_factors: ClassVar[bool] = True
    """Learned rescaling factors of a tier's clients can be averaged, round by round."""

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield what of an experiment the traits rule out."""
        e, named = experiment, f"aggregation.name {self.name!r}"
        if e.upload.error_feedback and not self.continues:
            yield Fault(
                "upload.error_feedback",
                f"what clients of {named} send means something else in the next round, so that "
                "what an update left out could not be added there; use false",
            )
        if e.rescaling.learned and not self.averages_factors:
            yield Fault(
                "rescaling.name",
                f"{e.rescaling.name!r} has no meaning with {named}; use 'none' or 'static'",
            )
        if self.changes_routers:
            yield from self._router_faults(e, model)
        if e.adapter.start and self.warm == "never":
            said = f"has no place in {named}, which trains between bases of its own; leave it out"
            yield Fault("adapter.start", said)

    def _router_faults(self, experiment: Any, model: Any) -> Iterator[Fault]:
        """Yield what else changes routers, and routers that cannot be changed."""
        e, named = experiment, f"aggregation.name {self.name!r}"
        if e.rescaling.reweighs:
            said = f"{e.rescaling.by!r} and {named} both change the routers' weights; use 'ratio'"
            yield Fault("rescaling.by", said)
        if not e.gating.own:
            said = f"{e.gating.name!r} and {named} both change what routers choose; use 'top_k'"
            yield Fault("gating.name", said)
        if model is not None and (fault := model.gates.softmax_fault()):
            yield Fault("aggregation.name", f"{self.name!r} {fault}; use another strategy")

    def layouts(self, plain: Layout, round: int) -> Layouts:
        """Return the layouts of a client; `plain` has its rank and all tensors that LoRA adds."""
        return Layouts.all(plain)

    def first_state(self, initial: Adapter) -> Adapter:
        """Return the global state before round 1, from an adapter that changes nothing."""
        return initial

    def start_layout(self, plain: Layout) -> Layout:
        """Return the layout in which a trained adapter becomes a part of the first state."""
        return plain

    def warm_state(self, initial: Adapter, start: Adapter) -> Adapter:
        """Return the global state before round 1, from an adapter that was trained before."""
        return self.first_state(start)

    def send(self, state: Adapter, plain: Layout) -> Adapter:
        """Return what a client of that rank is sent; the state itself where that is the same."""
        return state if state.layout.rank == plain.rank else resized(state, plain)

    def extra_state(self, state: Layout) -> Layout | None:
        """Return the part of the state that is no average; server optimisers leave it alone."""
        return None

    def step(
        self, rule: Rule, old: Adapter, proposed: Adapter, memory: Memory
    ) -> tuple[Adapter, Memory]:
        """The state that a server optimiser makes of a proposed one, and its memory."""
        return step_values(rule, old, proposed, memory)

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        """The client's side of a task; `initial` is the run's first adapter, at full rank."""
        return Local(layouts, task.adapter, own)

    def reach(self, task: Task, moved: float) -> tuple[float, int]:
        """Return the largest value of an update if training moves one by at most `moved`.

        Also returns how many of the last values have no known bound.
        """
        return moved, 0

    def discount(self, update: Update, staleness: int) -> Update:
        """Return an update as it counts if it started `staleness` server updates ago."""
        return update

    def updates_per_step(self, clients_per_round: int) -> int:
        """Return how many updates an asynchronous server waits for before it steps."""
        return clients_per_round

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        """The next global state.

        Updates come in the order of client ids, one at a time; the result does not depend on
        anything else. An expert that nobody trained stays bit-identical.

        Args:
            adapter: the state before.
            updates: at least one.
            num_clients: in the whole federation.

        Raises:
            AggregationError: there are no updates.
        """
        raise NotImplementedError


def over(base: Adapter, *parts: Adapter | None) -> Adapter:
    """Return `base` with each part's tensors in place of those of the same name."""
    made = Adapter(base.layout, torch.empty_like(base.flat).copy_(base.flat))
    for part in parts:
        if part is not None:
            place(part, made)
    return made
