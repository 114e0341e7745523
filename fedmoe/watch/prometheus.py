"""Runs as metrics in Prometheus' text format, for a scrape or a textfile collector.

Written without `prometheus_client`: its registry is made for counters that live in a process. Here
it would add a dependency and a collector class, and save the 15 lines at the end of this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar, get_args

from fedmoe.report.expert_load import CAPTURED, STARVED
from fedmoe.watch.state import Phase, RunState, TierState, Unreadable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

T = TypeVar("T")
Labels = dict[str, str]
Samples = Iterable[tuple[Labels, float | None]]
Metric = tuple[str, Callable[[T], "Samples | float | None"]]
"""A sentence on it, and its samples: by labels, or one value; None if it is not known."""

RUN_METRICS: dict[str, Metric[RunState]] = {
    "run_info": ("Name and settings of a run.", lambda r: [(_info(r), 1.0)]),
    "run_phase": (
        "1 for the phase that a run is in.",
        lambda r: [({"phase": phase}, float(r.phase == phase)) for phase in get_args(Phase)],
    ),
    "rounds": ("Rounds planned.", lambda r: r.num_rounds),
    "rounds_finished_total": ("Rounds finished.", lambda r: r.num_finished),
    "workers_replaced_total": ("Workers that died.", lambda r: r.num_replaced),
    "remaining_seconds": (
        "Estimated wall time to the end.",
        lambda r: 0.0 if r.phase == "finished" else r.seconds_left,
    ),
    "last_line_timestamp_seconds": (
        "Last write to the ledger, in seconds since 1970.",
        lambda r: r.last_line,
    ),
    "client_failures_total": (
        "Client rounds that were lost or refused, by the kind of fault.",
        lambda r: [({"code": code}, count) for code, count in r.failures_by_code.items()],
    ),
    "clients_awaited": (
        "Clients of the round that have not answered.",
        lambda r: sum(c.state == "awaited" for c in r.clients) + r.unnamed,
    ),
    "virtual_clock_seconds": ("Time on the clients' devices.", lambda r: r.virtual_clock),
    "experts": ("In all layers.", lambda r: r.experts and r.experts.num_experts),
    "experts_starved": (
        f"Experts below {STARVED:g} equal shares of tokens so far.",
        lambda r: r.experts and r.experts.starved,
    ),
    "experts_captured": (
        f"Experts above {CAPTURED:g} equal shares of tokens so far.",
        lambda r: r.experts and r.experts.captured,
    ),
}
TIER_METRICS: dict[str, Metric[TierState]] = {
    "tier_top_k": ("Experts per token.", lambda t: t.top_k),
    "client_answers_total": (
        "Client rounds, by status of the update.",
        lambda t: [({"status": "ok"}, t.answers), ({"status": "failed"}, t.failures)],
    ),
    "trained_tokens_total": ("Tokens that clients trained on.", lambda t: t.tokens),
    "client_seconds_total": ("Time that clients trained.", lambda t: t.seconds),
    "message_bytes_total": (
        "Bytes of tasks (down) and of updates (up).",
        lambda t: [({"direction": "down"}, t.bytes_down), ({"direction": "up"}, t.bytes_up)],
    ),
    "score_ratio": (
        "Last score of the global adapter at a tier's budget, from 0 to 1.",
        lambda t: [({"split": s}, _number(e.score)) for s, e in t.last_scores.items()],
    ),
    "loss": (
        "Last loss per token.",
        lambda t: [({"split": s}, _number(e.loss)) for s, e in t.last_scores.items()],
    ),
}


def render_metrics(runs: Sequence[RunState | Unreadable]) -> str:
    """Return the metrics of all runs, told apart by the label `run`.

    Names carry base units (seconds, bytes, ratio), counters alone end with `_total`, and a value
    that was not finite is NaN. A counter falls when a run is repeated from its start, which
    Prometheus takes for a restart.

    Source: Prometheus' text exposition format 0.0.4; samples have no time stamps, which the
    textfile collector would refuse.
    """
    known = [run for run in runs if isinstance(run, RunState)]
    unread = [({"run": run.run}, run) for run in runs if isinstance(run, Unreadable)]
    tiers = [({"run": run.run, "tier": tier.name}, tier) for run in known for tier in run.tiers]
    return (
        _families(RUN_METRICS, [({"run": run.run}, run) for run in known])
        + _families(TIER_METRICS, tiers)
        + _families({"unreadable": ("A ledger that cannot be read.", lambda _: 1.0)}, unread)
    )


def _info(run: RunState) -> Labels:
    names = ("name", "model", "strategy", "rescaling", "seed")
    return {name: str(getattr(run, name)) for name in names}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _families(metrics: Mapping[str, Metric[T]], objects: Sequence[tuple[Labels, T]]) -> str:
    """Return a family of samples per metric, with those of all objects; none without samples."""
    text = ""
    for name, (about, samples_of) in metrics.items():
        lines = []
        for whose, found in objects:
            samples = samples_of(found)
            for labels, value in samples if isinstance(samples, Iterable) else [({}, samples)]:
                if value is not None:
                    lines.append(f"fedmoe_{name}{{{_pairs(whose | labels)}}} {_written(value)}\n")
        if lines:
            kind = "counter" if name.endswith("_total") else "gauge"
            text += f"# HELP fedmoe_{name} {about}\n# TYPE fedmoe_{name} {kind}\n{''.join(lines)}"
    return text


def _pairs(labels: Labels) -> str:
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return ",".join(f'{key}="{value.translate(escapes)}"' for key, value in labels.items())


def _written(value: float) -> str:
    return "NaN" if math.isnan(value) else repr(value)
