"""What a simulation costs beside its training: time per client-round, start-up, memory.

The client of the first rows does nothing: what is left is task, update, checks and aggregation, for
an adapter of 6.3 MB that other frameworks handle as 6,144 tensors.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import Flame
from fedmoe.budget import Levels, Tier
from fedmoe.config import Experiment
from fedmoe.data import HomeAssistant
from fedmoe.data.partition import Iid
from fedmoe.messages.codec import Task, Update
from fedmoe.models.families import FAMILIES, Family
from fedmoe.rounds import Member, ServerState, plan_round, run_rounds
from fedmoe.runs.local.in_process import InProcess, Transport
from fedmoe.runs.local.pool import Pool
from fedmoe.runs.local.schedule import expected_work
from fedmoe.runs.prepare import prepare
from fedmoe.runs.prepared import Prepared
from fedmoe.runs.recorder import tier_costs
from fedmoe.training.settings import Training
from simulations.benchmarks.measure import Options, Row, in_turns, named, ratio
from simulations.benchmarks.memory import Peak, pss_bytes, tree

CONFIG = Path(__file__).parents[2] / "configs/many_clients.yaml"
LAYERS, EXPERTS, RANK, WIDTH, TOP_K = 24, 64, 8, 32, 8
LOGICAL_TENSORS = 4 * LAYERS * EXPERTS
"""A and B of two weights of every expert: 6,144 of 256 values."""
SETTING = f"{LOGICAL_TENSORS:,} tensors, 6.3 MB, no-op client"


def rows(options: Options) -> Iterator[Row]:
    """The simulation's figures; see `measure.Row`."""
    yield from overhead_rows(options)
    if not options.quick:
        yield flower_row()
    yield from start_rows(options)
    yield from many_clients_rows(options)


@dataclass(frozen=True, eq=False)
class Still(Prepared):
    """A run whose clients send back what they were sent, as if they had learned it."""

    def train(self, task: Task) -> Update:
        counts = torch.full((LAYERS, EXPERTS), task.top_k)
        return Update(
            round=task.round,
            client=task.client,
            tier=task.tier,
            top_k=task.top_k,
            rescaler=task.rescaler,
            delta=task.adapter,
            counts=counts,
            examples=1,
            tokens=EXPERTS,
            steps=1,
            loss_before=1.0,
            loss_after=1.0,
            seconds=1e-9,
            peak_bytes=1,
        )


@dataclass(frozen=True)
class Shape:
    """All that is needed of a model whose clients do nothing."""

    layout: Layout
    full_top_k: int = TOP_K
    family: Family = FAMILIES["olmoe"]
    stacks: tuple[str, ...] = ()


def still_run(num_clients: int, width: int = WIDTH) -> Still:
    """A run of the size that the first rows speak of, or of experts of another width."""
    shape = (EXPERTS, RANK, width)
    names = ("a.A", "a.B", "b.A", "b.B")
    layout = Layout.of(
        [(f"{i}.{name}", shape, i) for i in range(LAYERS) for name in names],
        LAYERS,
        EXPERTS,
        RANK,
        16.0,
    )
    model: Any = Shape(layout)
    experiment = Experiment(budget=Levels(tiers={"all": Tier(top_k=TOP_K)}))
    members = tuple(Member(client, "all", TOP_K) for client in range(num_clients))
    return Still(
        experiment=experiment,
        model=model,
        tokenizer=None,
        rows=(),
        members=members,
        tiers={"all": TOP_K},
        ranks={"all": model.layout.rank},
        sets={},
        manifest={},
        training=experiment.training,
        initial=Adapter(model.layout, torch.zeros(model.layout.size)),
        base="",
    )


def overhead_rows(options: Options) -> Iterator[Row]:
    """A round of clients that do nothing, through our transports and as a plain loop."""
    num_clients = 4 if options.quick else 10
    run = still_run(num_clients)
    layout, state = run.model.layout, still_state(run)
    plain = {f"t{i}": torch.zeros(layout.size // LOGICAL_TENSORS) for i in range(LOGICAL_TENSORS)}
    pool = Pool(run, 2)
    try:
        seconds = in_turns(
            {
                "in this process": lambda: one_round(run, state, InProcess(run)),
                "on two workers": lambda: one_round(run, state, pool),
                "plain loop": lambda: plain_round(plain, num_clients),
            },
            options.repeats,
        )
    finally:
        pool.close()
    for name in ("in this process", "on two workers"):
        # A time, not a ratio: the turn that the machine disturbed least comes closest to it.
        least = min(seconds[name]) / num_clients * 1e3
        note = (
            f"the best turn; median {statistics.median(seconds[name]) / num_clients * 1e3:.1f} ms"
        )
        what = f"overhead per client-round {name}"
        yield Row(what, SETTING, f"{least:.1f} ms", "at most 10 ms", least <= 10, note)
    slower = ratio(seconds["plain loop"], seconds["in this process"])
    each = statistics.median(seconds["plain loop"]) / num_clients * 1e3
    note = f"deepcopy and a mean by name: {each:.0f} ms"
    yield Row("plain Python loop against in this process", SETTING, f"{slower:.1f}x", note=note)


def still_state(run: Prepared) -> ServerState:
    """What a run of clients that do nothing begins with."""
    return ServerState(0, run.initial, {"all": torch.ones(LAYERS)})


def one_round(
    run: Prepared, state: ServerState, transport: Transport, num_clients: int | None = None
) -> ServerState:
    """One round with all clients, or as many as asked for."""
    return run_rounds(
        state,
        run.members,
        Flame(),
        transport,
        [],
        num_rounds=1,
        clients_per_round=num_clients or len(run.members),
        seed=0,
    )


def plain_round(state: Mapping[str, torch.Tensor], num_clients: int) -> dict[str, torch.Tensor]:
    """FedAvg as people write it: a copy of the state for each client, then a mean by name."""
    answers = [copy.deepcopy(dict(state)) for _ in range(num_clients)]
    mean = {name: torch.zeros_like(values) for name, values in state.items()}
    for answer in answers:
        for name, values in answer.items():
            mean[name] += values / num_clients
    return mean


def flower_row() -> Row:
    """Flower's Ray engine at the same size, in a process of its own."""
    what, peer = "Flower's Ray engine, per client-round", named("flwr")
    command = [sys.executable, "-m", "simulations.benchmarks.flower_noop", "3"]
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, env=os.environ | quiet
        )
    except subprocess.TimeoutExpired:
        return Row(what, SETTING, "not done in 10 minutes", note=peer)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if len(lines) < 3:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Row(what, SETTING, "did not run", note=f"{peer}: {last[:80]}")
    first, *later = [float(line[1]) for line in lines]
    each = statistics.median(later) / 2 * 1e3
    return Row(what, SETTING, f"{each:,.0f} ms", note=f"{peer}; first round {first:.0f} s")


def small_run() -> Prepared:
    """The built-in model with eight clients of one step."""
    return prepare(
        Experiment(
            data=HomeAssistant(per_domain=100),
            partition=Iid(num_clients=8),
            training=Training(steps=1, batch_size=8, probe_examples=1),
        )
    )


def start_rows(options: Options) -> Iterator[Row]:
    """From a loaded model to the first client's first step; what one more worker adds."""
    run = small_run()
    tasks = plan_round(run.first_state(), run.members, len(run.members), 0)
    first_step(run, tasks[:1])
    turns = [first_step(run, tasks[:1]) for _ in range(options.repeats)]
    least, own = min(turns)
    median = statistics.median(total for total, _ in turns)
    note = f"the best turn, {own:.2f} s of it the client's; median {median:.2f} s"
    yield Row(
        "from a loaded model to the end of a first step",
        "2 workers, 8 examples",
        f"{least:.2f} s",
        "under 1 s",
        least < 1,
        note,
    )
    base, more = (peak_of_workers(run, tasks, workers) for workers in (1, 3))
    price = tier_costs(run)[tasks[0].tier]
    one = (more - base) / 2
    optimiser = 4 * 4 * run.model.layout.size
    weights = sum(p.numel() * p.element_size() for p in run.model.model.parameters())
    weights -= 4 * run.model.layout.size
    yield Row(
        "memory of one more worker (PSS)",
        f"{run.model.layout.size * 4 / 1e6:.1f} MB adapter",
        f"{one / 1e6:.0f} MB",
        note=(
            f"adapter and optimiser {optimiser / 1e6:.0f} MB, activations about "
            f"{price.memory_bytes / 1e6 - optimiser / 1e6 - weights / 1e6:.0f} MB, the rest "
            f"not told apart; frozen weights {weights / 1e6:.0f} MB are shared"
        ),
    )


def first_step(run: Prepared, tasks: list[Task]) -> tuple[float, float]:
    """Seconds from no pool at all to the answer to a task; the client's own seconds."""
    started = time.monotonic()
    pool = Pool(run, 2, work=expected_work(run))
    try:
        (update,) = pool(tasks)
        assert isinstance(update, Update), update
        return time.monotonic() - started, update.seconds
    finally:
        pool.close()


def peak_of_workers(run: Prepared, tasks: list[Task], workers: int) -> int:
    """The peak of this process and its workers while they train."""
    pool = Pool(run, workers, work=expected_work(run))
    pids = [os.getpid(), *(worker.process.pid or 0 for worker in pool.force.workers)]
    try:
        with Peak(lambda: pss_bytes(pids), 0.02) as peak:
            for _ in range(3):
                list(pool(tasks))
    finally:
        pool.close()
    return peak.bytes


@dataclass(frozen=True)
class Figures:
    """A whole run, measured from outside."""

    peak_bytes: int
    seconds: float
    per_client: float
    """Wall seconds of the rounds, per client-round."""


def many_clients_rows(options: Options) -> Iterator[Row]:
    """The same data, shared out to 50 and to 1,000 clients."""
    if not CONFIG.exists():
        yield Row("1,000 clients against 50", "peak memory", "not measured", note=f"no {CONFIG}")
        return
    few, many = measured_run(50, options.quick), measured_run(1000, options.quick)
    grown = many.peak_bytes / few.peak_bytes
    peaks = f"{few.peak_bytes / 2**20:,.0f} and {many.peak_bytes / 2**20:,.0f} MiB"
    yield Row(
        "peak memory of 1,000 clients against 50",
        "all processes, PSS",
        f"{grown:.2f}x",
        "at most 1.1x",
        grown <= 1.1,
        peaks,
    )
    slower = many.per_client / few.per_client
    note = f"{few.per_client:.2f} and {many.per_client:.2f} s, {many.seconds:.0f} s in all"
    yield Row("client-round of 1,000 clients against 50", "wall time", f"{slower:.2f}x", note=note)


def measured_run(num_clients: int, quick: bool) -> Figures:
    """Run the config in a process of its own and look at its memory twice a second."""
    small = ["rounds=1", "clients_per_round=8", "data.per_domain=400", "training.steps=1"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "fedmoe.cli.main",
            "run",
            str(CONFIG),
            f"simulation.folder={folder}",
            f"partition.num_clients={num_clients}",
            *(small if quick else ()),
            "--quiet",
        ]
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with Peak(lambda: pss_bytes(tree(process.pid)), 0.5) as peak:
            code = process.wait()
        assert code == 0, (code, command)
        seconds = time.monotonic() - started
        (ledger,) = Path(folder).glob("*/ledger.jsonl")
        records = [json.loads(line) for line in ledger.read_text().splitlines()]
    done = [r for r in records if r["kind"] == "round"]
    each = sum(r["seconds"] for r in done) / sum(r["clients"] for r in done)
    return Figures(peak.bytes, seconds, each)
