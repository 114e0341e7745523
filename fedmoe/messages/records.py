"""The records that messages carry, and the one list of the numbers that a client reports.

To report one more number, add a line to `ClientReport` and compute it where the update is made
(`training/client.py`): messages, validation, the ledger, live tables, logs, trackers and reports
iterate over `CLIENT_FIELDS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.errors import quoted
from fedmoe.messages.rows import RowCounts

MOST_METRICS = 16
"""Own metrics in one update."""
METRIC_NAME = re.compile(r"[A-Za-z][\w.-]{0,39}", re.ASCII)
"""The whole of a metric's name."""
MOST_METRIC = 1e12
"""Size of an own metric: a report draws and adds them."""
MOST_LOSS = 1e6
MOST_SECONDS = 1e9
"""Of any duration that a client reports: thirty years."""

Number = int | float


@dataclass(frozen=True)
class Field:
    """One number that a client reports about its local round: its bounds, and how it is shown.

    `name` and `type` are filled in from the attribute that the field annotates.
    """

    label: str
    """Its column's heading."""
    least: float
    most: float
    """An update with a value outside the bounds is refused."""
    unit: Literal["", "seconds", "bytes"] = ""
    live: Literal["value", "per second"] | None = "value"
    """Its form in live tables and logs; trackers then get it, too. Ledger and JSON have them all.
    """
    over_rounds: Literal["first", "last", "sum", "largest"] | None = None
    """The summary over a client's rounds in the report; None leaves the column out."""
    summed: bool = False
    """Part of what a run tells of all clients together, where it hides each one's numbers."""
    name: str = ""
    type: type[Number] = float


@dataclass(frozen=True, kw_only=True, eq=False)
class ClientReport:
    """The numbers that a client reports about its local round: a line each, and no other list."""

    examples: Annotated[
        int, Field("examples", 1, 2**40, live=None, over_rounds="last", summed=True)
    ]
    """Training examples that the client holds; `Limits.examples` bounds them by what is known."""
    steps: Annotated[int, Field("steps", 1, 2**40, live=None)]
    """Optimiser steps; `Limits.steps` has the task's."""
    loss_before: Annotated[
        float, Field("loss before", -MOST_LOSS, MOST_LOSS, over_rounds="first", summed=True)
    ]
    """Mean loss per response token on the client's own examples, before training."""
    loss_after: Annotated[
        float, Field("loss after", -MOST_LOSS, MOST_LOSS, over_rounds="last", summed=True)
    ]
    tokens: Annotated[int, Field("tokens", 1, 2**50, live="per second", over_rounds="sum")]
    """Tokens that passed through the model in training, padding excluded; `Limits.tokens` bounds
    them by the task."""
    targets: Annotated[int, Field("response tokens", 0, 2**50, live=None)] = 0
    """Those of them that the output head is computed for, as the loss is over them alone."""
    seconds: Annotated[float, Field("time", 0, MOST_SECONDS, "seconds", over_rounds="sum")]
    """Wall time of the local round."""
    peak_bytes: Annotated[
        int, Field("peak memory", 0, 2**50, "bytes", live=None, over_rounds="largest")
    ]
    """Peak of the process's memory; on a GPU, of the memory allocated there in this round."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Own metrics of a local step: at most `MOST_METRICS` numbers up to `MOST_METRIC` in size, each
    with a `METRIC_NAME`."""
    rows: RowCounts | None = None
    """The account of the client's rows, where it alone has them; `examples` is then `rows.train`,
    or more where conversations make several each."""

    withheld: bool = False
    """True if nobody is to be shown these numbers; see `privacy`."""

    def reported(self) -> dict[str, Number]:
        """Return every field of `CLIENT_FIELDS` by name, in order; nothing where it is withheld."""
        return {} if self.withheld else {f.name: getattr(self, f.name) for f in CLIENT_FIELDS}

    def as_json(self) -> dict[str, Any]:
        """Return the same for JSON, with `metrics` and `rows` if there are any."""
        if self.withheld:
            return {}
        metrics = {name: float(value) for name, value in self.metrics.items()}
        found = self.reported() | ({"metrics": metrics} if metrics else {})
        return found | ({"rows": self.rows.as_json()} if self.rows else {})


def _client_fields() -> tuple[Field, ...]:
    hints = get_type_hints(ClientReport, include_extras=True)
    marked = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Annotated}
    return tuple(replace(mark, name=name, type=kind) for name, (kind, mark) in marked.items())


CLIENT_FIELDS = _client_fields()
"""Everything that a client reports, in the order in which it is shown."""
SUMMED = tuple(field for field in CLIENT_FIELDS if field.summed)
"""Those that hidden runs tell of all clients together."""


def least_report() -> dict[str, Number]:
    """Return a report that tells nothing: every field's least value, or 0."""
    return {field.name: field.type(max(0, field.least)) for field in CLIENT_FIELDS}


@dataclass(frozen=True, eq=False)
class Task:
    """One whole local round of one client, repeatable from these values alone.

    >>> import torch
    >>> from fedmoe.adapter import Adapter, Layout
    >>> layout = Layout.of([("experts.A", (4, 2, 3), 0)], 1, num_experts=4, rank=2, alpha=4.0)
    >>> adapter = Adapter(layout, torch.zeros(layout.size))
    >>> task = Task(1, client=0, tier="low", top_k=2, rescaler=torch.ones(1), adapter=adapter)
    >>> task.tier, task.adapter.layout.size
    ('low', 24)
    """

    round: int
    client: int
    tier: str
    top_k: int
    """Experts that each token activates."""
    rescaler: Tensor
    """float32 (layers,): the tier's factors on each MoE layer's output."""
    adapter: Adapter
    name: str = ""
    """The client's id, where clients are known by name; see `data.federated`."""

    @property
    def key(self) -> int | str:
        """Return what the client's rows are found by: its name, or its number without one."""
        return self.name or self.client

    @property
    def who(self) -> str:
        """Return the client in words."""
        return f"client {self.key}"


@dataclass(frozen=True, eq=False)
class Update(ClientReport):
    """A client's answer to a task: what training changed, which experts it used, and its report.

    >>> import torch
    >>> from fedmoe.adapter import Adapter, Layout
    >>> layout = Layout.of([("experts.A", (4, 2, 3), 0)], 1, num_experts=4, rank=2, alpha=4.0)
    >>> delta = Adapter(layout, torch.ones(layout.size))
    >>> counts = torch.tensor([[5, 3, 0, 0]])
    >>> update = Update(
    ...     1, client=0, tier="low", top_k=2, rescaler=torch.ones(1), delta=delta, counts=counts,
    ...     examples=8, steps=1, tokens=4, loss_before=2.0, loss_after=1.5, seconds=0.1,
    ...     peak_bytes=0, metrics={"gradient_norm": 0.7},
    ... )
    >>> update.reported()["loss_after"], update.metrics
    (1.5, {'gradient_norm': 0.7})
    """

    round: int
    client: int
    tier: str
    top_k: int
    rescaler: Tensor
    delta: Adapter
    """Local minus global adapter; zero for experts that no token reached."""
    counts: Tensor
    """int64 (layers, experts): tokens routed to each expert in local training."""
    num_bytes: int = 0
    """Size of the message that it arrived in; 0 before it is sent."""
    merged: Tensor | None = None
    """int64 (layers,): choices of the expert that merges those left out; None without one."""
    name: str = ""
    """As in its task."""
    masked: np.ndarray | None = None
    """uint64: the client's vector under masks, in place of all that it hides; see `privacy`."""


@dataclass(frozen=True)
class Failure:
    """A client whose round did not arrive or was refused, and why."""

    round: int
    client: int
    reason: str
    code: str = "failed"
    """`failed` (the client could not), `late` (no answer in time), `busy` (its nodes are at work on
    another task), `injected` (on purpose), or a `WireError`'s code."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", quoted(self.reason))


@dataclass(frozen=True)
class Message:
    """A task or an update in packed form; see `codec`."""

    scalars: str
    """JSON."""
    buffer: bytes | memoryview
    """Values of an update are read in place if it is writable, else from a copy."""
    checksum: int | None = None
    """Checksum of both, for a message that crosses a network; see `codec.sealed`."""

    def __reduce__(self) -> tuple[type[Message], tuple[Any, ...]]:
        return Message, (self.scalars, bytes(self.buffer), self.checksum)  # no view can be pickled

    @property
    def num_bytes(self) -> int:
        """Size of both parts."""
        return len(self.scalars.encode()) + len(self.buffer)
