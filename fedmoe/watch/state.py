"""The state of a run, and of a folder of runs, as values for terminal, page, JSON and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from fedmoe.report.units import seconds_text

Phase = Literal["finished", "running", "silent"]
"""`silent`: no end, and nothing written for so long that the run has most likely died."""


@dataclass(frozen=True)
class Score:
    """One evaluation of the global adapter at a tier's budget."""

    split: str
    round: int
    score: float | None
    loss: float | None


@dataclass(frozen=True)
class TierState:
    """A budget tier: the work of its clients so far, and its scores."""

    name: str
    top_k: int
    num_clients: int
    device: str | None
    """The label of its virtual device, if it has one."""
    answers: int
    failures: int
    tokens: int
    seconds: float
    """Sum of its clients' training times."""
    bytes_down: int
    bytes_up: int
    scores: tuple[Score, ...]
    """By round; the last one is the newest."""

    @property
    def base(self) -> Score | None:
        """The base model's test score."""
        return next((s for s in self.scores if s.split == "test" and s.round == 0), None)

    @property
    def curve(self) -> tuple[Score, ...]:
        """The scores on validation data, after the base model's test score."""
        return tuple(s for s in self.scores if s.split == "validation" or s.round == 0)

    @property
    def last_scores(self) -> dict[str, Score]:
        """The newest score by split."""
        return {score.split: score for score in self.scores}

    def newest(self, split: str) -> Score | None:
        """Return the last score on a split after round 0."""
        return next((s for s in reversed(self.scores) if s.split == split and s.round), None)


@dataclass(frozen=True)
class ClientState:
    """A client of the current round."""

    client: int
    name: str
    """Its id, where clients are known by name; else its number."""
    tier: str
    top_k: int
    state: Literal["ok", "failed", "awaited"]
    reason: str | None = None
    reported: Mapping[str, float | None] = field(default_factory=dict)
    """The client's own numbers, by their names in `CLIENT_FIELDS`."""
    virtual_seconds: float | None = None
    staleness: int | None = None
    """Server steps since the adapter that it started from, in asynchronous runs."""


@dataclass(frozen=True)
class FailureGroup:
    """Updates that were kept out of the average for the same reason."""

    reason: str
    """The reason of the last of them; its numbers may differ between clients."""
    code: str
    """The category, see `errors.WireError`; empty in a ledger older than codes."""
    count: int
    clients: tuple[int, ...]
    names: tuple[str, ...]
    """Of the same clients: their ids, where they are known by name; else their numbers."""
    last_round: int


@dataclass(frozen=True)
class ExpertLoad:
    """The distribution of the tokens of all rounds so far over the experts."""

    num_experts: int
    """In all layers."""
    starved: int
    """Experts below a tenth of the equal share of their layer's tokens."""
    captured: int
    """Experts above twice the equal share."""
    load: tuple[tuple[float | None, ...], ...]
    """(layers, experts): share of the layer's tokens times experts; 1 is equal."""


@dataclass(frozen=True)
class RunState:
    """The state of one run."""

    run: str
    """Its folder, relative to the one that is watched."""
    name: str
    phase: Phase
    activity: str
    """The current activity in words."""
    model: str
    strategy: str
    rescaling: str
    seed: int
    num_rounds: int
    num_finished: int
    """Number of finished rounds."""
    round: int
    """The round of `clients`: the current one, or the last."""
    seconds_left: float | None
    seconds: float | None
    """Wall time of a run that has ended, else of its rounds."""
    last_line: float
    """Time of the last write to the ledger, in seconds since 1970."""
    quiet_seconds: float
    """Seconds since then."""
    clients: tuple[ClientState, ...]
    unnamed: int
    """Awaited clients of the round whose names cannot be known yet."""
    tiers: tuple[TierState, ...]
    score_name: str
    quarantine: tuple[FailureGroup, ...]
    experts: ExpertLoad | None
    num_replaced: int
    """Workers that died and were replaced."""
    virtual_clock: float | None
    """Virtual seconds since the start, if clients have devices."""
    headline: str
    facts: tuple[tuple[str, str], ...]
    """The most important settings and totals as names and values, as in the report."""
    advice: str | None
    """Advice on resuming a silent run."""

    @property
    def without_clock(self) -> Self:
        """The state without values that change by themselves; equal if nothing has happened.

        The ledger's time does not tell: two lines within one tick of the file's clock share it.
        """
        return replace(self, quiet_seconds=0.0, seconds_left=None)

    @property
    def failures_by_code(self) -> dict[str, int]:
        """Number of updates refused or lost in all rounds, by code."""
        counts: Counter[str] = Counter()
        for group in self.quarantine:
            counts[group.code] += group.count
        return counts

    @property
    def num_failures(self) -> int:
        """Number of updates refused or lost in all rounds."""
        return sum(self.failures_by_code.values())

    @property
    def status_line(self) -> str:
        """The progress of the run in one line."""
        if self.phase == "finished":
            return f"finished after {seconds_text(self.seconds)}"
        quiet = f"last line {seconds_text(self.quiet_seconds)} ago"
        if self.phase == "silent":
            return f"no end and no news: {quiet}, then {self.activity}"
        known = self.seconds_left is not None
        left = f", about {seconds_text(self.seconds_left)} left" if known else ""
        return f"{self.activity}{left}, {quiet}"

    def as_json(self) -> dict[str, Any]:
        """Return all fields, for `json_text`."""
        found = {"kind": "run", **asdict(self)}
        found["clients"] = [c | c.pop("reported") for c in found["clients"]]
        return found


@dataclass(frozen=True)
class Unreadable:
    """A folder whose ledger is still empty, or damaged."""

    run: str
    error: str

    @property
    def without_clock(self) -> Self:
        """The state itself: nothing in it changes by itself."""
        return self

    @property
    def status_line(self) -> str:
        """The reason."""
        return self.error

    def as_json(self) -> dict[str, Any]:
        """Return all fields, for `json_text`."""
        return {"kind": "unreadable", **asdict(self)}


@dataclass(frozen=True)
class FolderState:
    """The state of all runs in a folder."""

    title: str
    runs: tuple[RunState | Unreadable, ...]
    """By folder."""
    num_planned: int | None = None
    """Runs that a comparison plans, if it has recorded their number."""

    @property
    def without_clock(self) -> Self:
        """The state without values that change by themselves."""
        return replace(self, runs=tuple(run.without_clock for run in self.runs))

    @property
    def num_finished(self) -> int:
        """Number of runs that have ended."""
        return sum(isinstance(r, RunState) and r.phase == "finished" for r in self.runs)

    @property
    def num_known(self) -> int:
        """Number of runs that exist or are planned."""
        # A comparison plans its results; the runs of its search come on top.
        search = sum(run.run.startswith("search/") for run in self.runs)
        return max((self.num_planned or 0) + search, len(self.runs))

    @property
    def rounds(self) -> tuple[int, int]:
        """The number of finished rounds, and of all; a run to come counts as the mean of others."""
        known = [r for r in self.runs if isinstance(r, RunState)]
        done, planned = (sum(getattr(r, n) for r in known) for n in ("num_finished", "num_rounds"))
        to_come = self.num_known - len(self.runs)
        return done, planned + round(to_come * planned / max(len(known), 1))

    @property
    def status_line(self) -> str:
        """The progress of all runs in one line."""
        at_work = [r.run for r in self.runs if isinstance(r, RunState) and r.phase == "running"]
        running = f"; running: {', '.join(at_work)}" if at_work else ""
        return f"{self.num_finished} of {self.num_known} runs finished{running}"

    def as_json(self) -> dict[str, Any]:
        """Return all runs, for `json_text`."""
        return {
            "kind": "runs",
            "title": self.title,
            "num_planned": self.num_planned,
            "num_finished": self.num_finished,
            "runs": [run.as_json() for run in self.runs],
        }


State = RunState | Unreadable | FolderState
