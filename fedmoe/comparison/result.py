"""The result of one finished run of a comparison: the numbers that its report shows."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path

import numpy as np

from fedmoe.errors import FedMoEError
from fedmoe.report.example_scores import ExampleScores, read_example_scores
from fedmoe.report.expert_load import relative_shares, starved_and_captured
from fedmoe.report.ledger import Record
from fedmoe.report.run import Run, read_run

MEAN = "mean of tiers"
Scored = Mapping[str, tuple[int | str, ...]] | None
"""By tier, the clients whose scores are the tier's: by number, or by name where they have one."""


@dataclass(frozen=True)
class Spent:
    """Costs of a run up to the end of a round, all clients together."""

    bytes_up: float = 0.0
    bytes_down: float = 0.0
    flops: float = 0.0
    """FLOPs of local training."""
    client_seconds: float = 0.0
    """Sum of the clients' own training times."""
    wall_seconds: float = 0.0
    """Seconds of the rounds, on the machine that simulated them."""
    virtual_seconds: float | None = None
    """Seconds of the rounds on the clients' virtual devices; None without such devices."""

    @property
    def bytes(self) -> float:
        """Both ways."""
        return self.bytes_up + self.bytes_down


@dataclass(frozen=True)
class Point:
    """A validation score during the run, and the costs up to it."""

    round: int
    score: float
    loss: float
    """Both the mean of the tiers."""
    spent: Spent
    scores: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    """Both by tier."""
    examples: int = 0
    """The fewest that a tier was scored on."""


@dataclass(frozen=True, eq=False)
class Result:
    """One finished run of one variant."""

    variant: str
    seed: int
    scores: dict[str, float]
    """Test score after the last round, by tier, and their mean."""
    losses: dict[str, float]
    """Test loss per token, likewise."""
    spent: Spent
    """In all rounds."""
    num_answers: int
    """Updates that arrived."""
    base_losses: dict[int, float] = field(default_factory=dict)
    """Test loss per token before the first round, by the number of experts per token."""
    case: str = ""
    metric: str = ""
    """The name of what the scores are of; "loss" where there is no score."""
    seconds: float = 0.0
    """Wall time of the whole run, including loading and evaluation."""
    clients: dict[int, float] = field(default_factory=dict)
    """Each client's score on its own rows; where it has none, its expected score on its own mix of
    labels."""
    points: tuple[Point, ...] = ()
    counts: np.ndarray | None = None
    """int64 (rounds, layers, experts): routed tokens."""
    num_examples: dict[str, int] = field(default_factory=dict)
    """Test examples by tier."""
    of_examples: ExampleScores = field(default_factory=ExampleScores)
    adapter_sha256: str = ""
    data_sha256: str = ""
    """Hash of the manifest; equal hashes mean the same examples for every client."""
    settings: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def bytes_up(self) -> float:
        """Mean bytes of a client's answer."""
        return self.spent.bytes_up / max(self.num_answers, 1)

    @property
    def extreme_experts(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Per round, the shares of starved and of captured experts; see `expert_load`."""
        return None if self.counts is None else starved_and_captured(self.counts)

    @property
    def client_seconds(self) -> float:
        """Mean training seconds of a client's round."""
        return self.spent.client_seconds / max(self.num_answers, 1)


def as_scored(run: Run, scored: Scored) -> Run:
    """Return a run with only the tiers that count, and the clients that are scored there.

    Where clients of a baseline train at full budget, they are scored at the tier they can afford.
    Where clients score on their own rows, a tier's scores are those of its own clients.
    """
    tiers = run.tiers
    if scored is not None:
        of = {name: tuple(_numbers(run, clients)) for name, clients in scored.items()}
        tiers = [replace(t, clients=of[t.name]) for t in tiers if t.name in of]
    own = {tier.name: {*tier.clients} for tier in tiers}
    evaluations = [of_clients(e, own[e["tier"]]) for e in run.evaluations if e["tier"] in own]
    return replace(run, tiers=tiers, evaluations=[e for e in evaluations if e["examples"]])


def _numbers(run: Run, clients: Iterable[int | str]) -> Iterator[int]:
    """Yield the clients' numbers in a run; of those known by name, which took part in it."""
    number_of = {name: number for number, name in run.names.items()}
    for client in clients:
        if isinstance(client, int) or client in number_of:
            yield client if isinstance(client, int) else number_of[client]


def of_clients(evaluation: Record, clients: Collection[int]) -> Record:
    """Return an evaluation with the means over some of the clients that scored on their own rows.

    One that has no clients is left as it is; where none of them scored, its examples are 0.
    """
    found = [c for c in evaluation.get("clients") or () if c["client"] in clients]
    if len(found) == len(evaluation.get("clients") or ()):
        return evaluation
    means = {
        name: sum(c[name] * c[weight] for c in found) / sum(c[weight] for c in found)
        for name, weight in (("score", "examples"), ("loss", "tokens"))
        if found and all(c[name] is not None for c in found)
    }
    nothing = {"score": 0.0, "metrics": {}, "loss": None}
    return (
        evaluation
        | nothing
        | means
        | {"examples": sum(c["examples"] for c in found), "clients": found}
    )


def read_result(
    variant: str, seed: int, folder: Path, case: str = "", scored: Scored = None
) -> Result | None:
    """Return the result of a run's folder, or None for a run that has not ended.

    Args:
        scored: see `as_scored`; None takes all tiers, and clients where they train.

    Raises:
        FedMoEError: the folder has no ledger, or a damaged one, or no client reports its scores.
    """
    run = as_scored(read_run(folder), scored)
    if run.end is None:
        return None
    if not (curves := run.curves("test")):
        raise FedMoEError(f"{folder}: no client reports its test scores, which are compared")
    tested = {curve[-1]["tier"]: curve[-1] for curve in curves}
    scores = {tier: float(e["score"] or 0) for tier, e in tested.items()}
    losses = {tier: _loss(e) for tier, e in tested.items()}
    spent = spending(run)
    manifest = folder / "manifest.json"
    return Result(
        variant=variant,
        seed=seed,
        scores=scores | {MEAN: statistics.mean(scores.values())},
        losses=losses | {MEAN: statistics.mean(losses.values())},
        spent=spent[max(spent)],
        num_answers=len(run.ok()),
        base_losses={c[0]["top_k"]: _loss(c[0]) for c in curves if c[0]["round"] == 0},
        case=case,
        metric=next(iter(tested.values())).get("metric", ""),
        seconds=run.end["seconds"],
        clients=_clients(run, tested),
        points=_points(run, spent),
        counts=_counts(folder / "activations.npz"),
        num_examples={tier: e["examples"] for tier, e in tested.items()},
        of_examples=read_example_scores(folder),
        adapter_sha256=run.end["adapter_sha256"],
        data_sha256=hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else "",
        settings=run.settings,
        environment=run.environment,
    )


def spending(run: Run) -> dict[int, Spent]:
    """Return the costs up to the end of each round; round 0 costs nothing."""
    total = Spent(virtual_seconds=0.0)
    after = {0: total}
    for line in run.rounds:
        done = [c for c in run.ok() if c["round"] == line["round"]]
        virtual = line.get("virtual_seconds")
        known = total.virtual_seconds is not None and virtual is not None
        total = Spent(
            total.bytes_up + sum(c["bytes_up"] for c in done),
            total.bytes_down + sum(c["bytes_down"] for c in done),
            total.flops + sum(c.get("flops", 0) for c in done),
            total.client_seconds + sum(c.get("seconds", 0) for c in done),
            total.wall_seconds + line["seconds"],
            (total.virtual_seconds or 0.0) + (virtual or 0.0) if known else None,
        )
        after[line["round"]] = total
    return after


def last_validation(run: Run) -> tuple[float, float] | None:
    """Return the last validation score and its loss, each the mean of the tiers; or None."""
    curves = run.curves("validation")
    if not curves or not all(curves):
        return None
    return (
        statistics.mean(float(curve[-1]["score"] or 0) for curve in curves),
        statistics.mean(_loss(curve[-1]) for curve in curves),
    )


def mix_score(labels: Mapping[str, int], by_label: Mapping[str, float]) -> float | None:
    r"""Return a client's expected score on examples with the same mix of labels as its own.

    $$s_c = \sum_l n_{cl}\, s_l \,/\, \sum_l n_{cl}$$

    over the labels l that were tested, with n the client's examples and s the test score of the
    label at the client's tier. None where no label of the client was tested.

    >>> mix_score({"lights": 3, "timers": 1}, {"lights": 0.5, "timers": 0.1})
    0.4
    """
    known = {label: n for label, n in labels.items() if label in by_label}
    total = sum(known.values())
    return sum(n * by_label[label] for label, n in known.items()) / total if total else None


def mean_load(results: Sequence[Result]) -> np.ndarray | None:
    """Return the (layers, experts) relative shares over all rounds, the mean of all runs' own."""
    loads = [relative_shares(r.counts.sum(0)) for r in results if r.counts is not None]
    return np.mean(loads, axis=0) if loads else None


def _points(run: Run, spent: dict[int, Spent]) -> tuple[Point, ...]:
    by_round: dict[int, list[Record]] = {}
    for e in run.evaluations:
        if e["split"] == "validation":
            by_round.setdefault(e["round"], []).append(e)
    return tuple(
        Point(
            round,
            statistics.mean(float(e["score"] or 0) for e in found),
            statistics.mean(map(_loss, found)),
            spent[round],
            {e["tier"]: float(e["score"] or 0) for e in found},
            {e["tier"]: _loss(e) for e in found},
            min(e["examples"] for e in found),
        )
        for round, found in sorted(by_round.items())
        if len(found) == len(run.curves("validation")) and round in spent
    )


def _clients(run: Run, tested: dict[str, Record]) -> dict[int, float]:
    """Return each client's score on its own rows, or with its own adapter; empty where one client
    stood for all."""
    scored = [c for test in tested.values() for c in test.get("clients") or ()]
    if run.names:
        return {
            c["client"]: float(c["score"] or 0) for c in sorted(scored, key=itemgetter("client"))
        }
    scores = {}
    if sum(len(tier.clients) for tier in run.tiers) < len(run.labels):
        return {}
    for tier in run.tiers:
        test = tested[tier.name]
        own = test.get("by_client") or {}
        for client in tier.clients:
            by_label = own.get(str(client), test.get("by_label", {}))
            scores[client] = mix_score(run.labels.get(client, {}), by_label)
    return {client: score for client, score in sorted(scores.items()) if score is not None}


def _counts(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        counts = arrays["by_round"]
    return counts if counts.sum() else None


def _loss(evaluation: Record) -> float:
    """A loss that was not finite is null in the ledger."""
    return float("inf") if evaluation["loss"] is None else float(evaluation["loss"])
