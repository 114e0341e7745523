"""A run in short: its status, its result in one sentence, and its facts."""

from collections.abc import Sequence

from fedmoe.report.clients import row_facts, spread_facts, untested
from fedmoe.report.expert_load import starved_and_captured
from fedmoe.report.ledger import Record
from fedmoe.report.run import Run
from fedmoe.report.run_tables import gap_text
from fedmoe.report.units import (
    DASH,
    bytes_text,
    count_text,
    number_text,
    percent_text,
    seconds_text,
)


def status(run: Run) -> str:
    """Return `finished`, or how far an interrupted run got."""
    done, planned = run.num_finished, run.header["num_rounds"]
    if run.complete:
        return "finished"
    if done == 0:
        return f"interrupted before round 1 of {planned} was finished"
    return f"interrupted after round {done} of {planned}"


def headline(run: Run) -> str:
    """Return how fine-tuning changed the score, averaged over tiers; test before validation."""
    for split in ("test", "validation"):
        curves = run.curves(split)
        if curves and all(len(curve) > 1 for curve in curves):
            return _change(run, split, curves)
        if curves and all(curves) and not run.header["num_rounds"]:
            score = _text(run, _mean(run, curves, 0))
            return f"Without training, the {split} {run.score_name} is {score}, the mean of tiers."
    if run.withheld and not run.evaluations:
        return f"All {len(run.withheld)} clients that were asked withhold their scores."
    return "The adapter has no scores yet."


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the most important settings and totals of a run as names and values."""
    head, end, done = run.header, run.end or {}, run.ok()
    seconds = end.get("seconds", sum(r["seconds"] for r in run.rounds) or None)
    resumed = {0: DASH, 1: "once"}.get(run.num_resumed, f"{run.num_resumed} times")
    starved, captured = DASH, DASH
    if run.by_client is not None:
        counts = run.by_client.sum(0)
        shares = starved_and_captured(counts)
        starved, captured = (f"{share * counts.size:.0f} of {counts.size}" for share in shares)
    missing = run.away[max(run.away)] if run.away else ()
    known = [
        ("Model", head["model"]),
        *row_facts(run),
        *(("Scores", note) for note in head.get("notes", ())),
        ("Clients", f"{head['num_clients']}, {head['clients_per_round']} per round"),
        ("Rounds", f"{run.num_finished} of {head['num_rounds']}"),
        ("Aggregation", head["strategy"]),
        ("Rescaling", head["rescaling"]),
        ("Seed", str(head["seed"])),
        *spread_facts(run),
        ("Trained tokens", count_text(sum(c["tokens"] for c in done) or None)),
        ("Sent to clients", bytes_text(sum(c["bytes_down"] for c in done) or None)),
        ("Sent back", bytes_text(sum(c["bytes_up"] for c in done) or None)),
        ("Wall time" if run.end else "Time in rounds", seconds_text(seconds)),
        ("Virtual time", seconds_text(max(run.virtual_clock.values(), default=None))),
        ("Spent in training", percent_text(end.get("training_share"))),
        ("Over the ideal schedule", gap_text(run.rounds)),
        ("Starved experts", starved),
        ("Captured experts", captured),
        ("Updates refused or lost", count_text((len(run.clients) - len(done)) or None)),
        ("Clients not there in the last round", count_text(len(missing) or None)),
        ("Clients that withhold their scores", count_text(len(run.withheld) or None)),
        ("Clients without test rows", count_text(untested(run) or None)),
        ("Requests for scores without an answer", count_text(len(run.unscored) or None)),
        ("Workers replaced", count_text(run.num_replaced or None)),
        ("Interrupted and resumed", resumed),
        ("Adapter SHA-256", end.get("adapter_sha256", DASH)[:16]),
    ]
    return [(name, value) for name, value in known if value != DASH]


def _mean(run: Run, curves: Sequence[Sequence[Record]], place: int) -> float:
    value = "score" if run.scored else "loss"
    return sum(curve[place][value] or 0 for curve in curves) / len(curves)


def _text(run: Run, value: float) -> str:
    return percent_text(value) if run.scored else number_text(value)


def _change(run: Run, split: str, curves: Sequence[Sequence[Record]]) -> str:
    before, after = _mean(run, curves, 0), _mean(run, curves, -1)
    first, last = curves[0][0]["round"], curves[0][-1]["round"]
    text = f"{split.capitalize()} {run.score_name}"
    if len(curves) > 1:
        text += f", averaged over {len(curves)} budget tiers,"
    if after == before:
        return f"{text} stayed at {_text(run, after)} from round {first} to round {last}."
    since = "without an adapter" if first == 0 else f"after round {first}"
    return (
        f"{text} {'rose' if after > before else 'fell'} from {_text(run, before)} {since} "
        f"to {_text(run, after)} after round {last}."
    )
