"""Runs as metrics in Prometheus' text format, for a scrape or a textfile collector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fedmoe.watch.live.pace import Phase
from fedmoe.watch.live.parts import Score, TierNow
from fedmoe.watch.live.state import RunNow, Unreadable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = dict[str, str]
Sample = tuple[Labels, float | None]


@dataclass(frozen=True)
class Metric:
    """A family of samples; one without samples is left out."""

    name: str
    kind: Literal["counter", "gauge"]
    about: str
    samples: Sequence[Sample]


def render_metrics(runs: Sequence[RunNow | Unreadable]) -> str:
    """Return the metrics of all runs, told apart by the label `run`.

    Names carry base units (seconds, bytes, ratio), counters end with `_total`, and a value that was
    not finite is NaN. A counter goes back when a run is done again from its start, which Prometheus
    takes for a restart.

    Source: Prometheus' text exposition format 0.0.4; samples have no time stamps, which the
    textfile collector would refuse.
    """
    known = [run for run in runs if isinstance(run, RunNow)]
    metrics = [*_of_runs(known), *_of_tiers(known), *_of_experts(known)]
    unread: list[Sample] = [({"run": r.run}, 1.0) for r in runs if isinstance(r, Unreadable)]
    metrics.append(Metric("unreadable", "gauge", "A ledger that cannot be read.", unread))
    return "".join(_text(metric) for metric in metrics if metric.samples)


def _of_runs(runs: Sequence[RunNow]) -> Iterator[Metric]:
    info = [
        (
            {
                "run": r.run,
                "name": r.name,
                "model": r.model,
                "strategy": r.strategy,
                "rescaling": r.rescaling,
                "seed": str(r.seed),
            },
            1.0,
        )
        for r in runs
    ]
    yield Metric("run_info", "gauge", "What a run is.", info)
    phases = [
        ({"run": r.run, "phase": phase}, float(r.phase == phase))
        for r in runs
        for phase in get_args(Phase)
    ]
    yield Metric("run_phase", "gauge", "1 for the phase that a run is in.", phases)

    def each(values: Iterable[float | None]) -> list[Sample]:
        named = zip(runs, values, strict=True)
        return [({"run": r.run}, value) for r, value in named if value is not None]

    yield Metric("rounds", "gauge", "Rounds planned.", each(r.num_rounds for r in runs))
    finished = each(r.num_finished for r in runs)
    yield Metric("rounds_finished_total", "counter", "Rounds finished.", finished)
    replaced = each(r.num_replaced for r in runs)
    yield Metric("workers_replaced_total", "counter", "Workers that died.", replaced)
    left = each(0.0 if r.phase == "finished" else r.seconds_left for r in runs)
    yield Metric("remaining_seconds", "gauge", "Estimated wall time to the end.", left)
    lines = each(r.last_line for r in runs)
    about = "When the ledger was last written, in seconds since 1970."
    yield Metric("last_line_timestamp_seconds", "gauge", about, lines)
    codes = [
        ({"run": r.run, "code": code}, sum(q.count for q in r.quarantine if q.code == code))
        for r in runs
        for code in dict.fromkeys(q.code for q in r.quarantine)
    ]
    about = "Client rounds that were lost or refused, by what was wrong."
    yield Metric("client_failures_total", "counter", about, codes)
    awaited = each(sum(c.state == "awaited" for c in r.clients) + r.unnamed for r in runs)
    yield Metric("clients_awaited", "gauge", "Clients of the round to be heard.", awaited)
    clock = each(r.virtual_clock for r in runs)
    yield Metric("virtual_clock_seconds", "gauge", "Time on the clients' devices.", clock)


def _of_tiers(runs: Sequence[RunNow]) -> Iterator[Metric]:
    tiers = [({"run": r.run, "tier": t.name}, t) for r in runs for t in r.tiers]
    yield Metric("tier_top_k", "gauge", "Experts per token.", [(w, t.top_k) for w, t in tiers])
    yield Metric(
        "client_answers_total",
        "counter",
        "Client rounds, by whether the update counted.",
        [
            (w | {"status": status}, n)
            for w, t in tiers
            for status, n in (("ok", t.answers), ("failed", t.failures))
        ],
    )
    tokens: list[Sample] = [(w, t.tokens) for w, t in tiers]
    yield Metric("trained_tokens_total", "counter", "Tokens trained on by clients.", tokens)
    seconds: list[Sample] = [(w, t.seconds) for w, t in tiers]
    yield Metric("client_seconds_total", "counter", "Time that clients trained.", seconds)
    yield Metric(
        "message_bytes_total",
        "counter",
        "Bytes of tasks (down) and of updates (up).",
        [
            (w | {"direction": way}, n)
            for w, t in tiers
            for way, n in (("down", t.bytes_down), ("up", t.bytes_up))
        ],
    )
    last = [(w | {"split": e.split}, e) for w, t in tiers for e in _newest(t)]
    about = "Last score of the global adapter at a tier's budget, from 0 to 1."
    yield Metric("score_ratio", "gauge", about, [(w, _number(e.score)) for w, e in last])
    yield Metric("loss", "gauge", "Last loss per token.", [(w, _number(e.loss)) for w, e in last])


def _of_experts(runs: Sequence[RunNow]) -> Iterator[Metric]:
    known = [({"run": r.run}, r.experts) for r in runs if r.experts]
    yield Metric("experts", "gauge", "In all layers.", [(w, e.num_experts) for w, e in known])
    for name, about in (
        ("starved", "Experts below 0.1 equal shares of tokens so far."),
        ("captured", "Experts above 2 equal shares of tokens so far."),
    ):
        values: list[Sample] = [(w, getattr(e, name)) for w, e in known]
        yield Metric(f"experts_{name}", "gauge", about, values)


def _newest(tier: TierNow) -> list[Score]:
    return [*{score.split: score for score in tier.scores}.values()]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _text(metric: Metric) -> str:
    name = f"fedmoe_{metric.name}"
    about = metric.about.replace("\\", r"\\").replace("\n", r"\n")
    head = f"# HELP {name} {about}\n# TYPE {name} {metric.kind}\n"
    return head + "".join(
        f"{name}{{{_labels(labels)}}} {_value(value)}\n" for labels, value in metric.samples
    )


def _labels(labels: Labels) -> str:
    return ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _value(value: float | None) -> str:
    number = _number(value)
    return "NaN" if math.isnan(number) else repr(number)
