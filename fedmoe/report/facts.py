"""A run in short: its status, its result in one sentence, its facts, and what to do next."""

import shlex
from collections.abc import Sequence

from fedmoe.report.clients import row_facts, spread_facts, untested
from fedmoe.report.expert_load import starved_and_captured
from fedmoe.report.ledger import Record
from fedmoe.report.privacy import privacy_facts
from fedmoe.report.run import Run
from fedmoe.report.run_tables import gap_text, wilson_interval
from fedmoe.report.text_table import TextTable, pairs_table
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
        return run.header.get("reason", "finished")
    if done == 0:
        return f"interrupted before round 1 of {planned} was finished"
    return f"interrupted after round {done} of {planned}"


def adapter_note(run: Run, which: str, round: int) -> str:
    """Return which adapter of a run is taken, and that the run is not finished if it is not."""
    said = f"the adapter is the {which} one, after round {round} of {run.header['num_rounds']}"
    return said if run.complete else f"{said}; WARNING: the run is not finished: {status(run)}"


def headline(run: Run) -> str:
    """Return how fine-tuning changed the score, averaged over tiers; test before validation.

    Where all scores are the same, it is the loss that is said to change.
    """
    for split in ("test", "validation"):
        curves = run.curves(split)
        if curves and all(len(curve) > 1 for curve in curves):
            return _change(run, split, curves)
        if curves and all(curves) and not run.header["num_rounds"]:
            score, loss = (_mean(curves, 0, name) for name in ("score", "loss"))
            how = "Before any" if run.header.get("start") else "Without"
            return (
                f"{how} training, the {split} {run.score_name} is {percent_text(score)}, the "
                f"mean of tiers; the loss is {number_text(loss)} per token."
            )
    if run.withheld and not run.evaluations:
        return f"All {len(run.withheld)} clients that were asked withhold their scores."
    return "The adapter has no scores yet."


def facts(run: Run) -> list[tuple[str, str]]:
    """Return what was trained on what, at which cost, and what went wrong, as names and values."""
    head, done = run.header, run.ok()
    missing = run.away[max(run.away)] if run.away else ()
    resumed = {0: DASH, 1: "once, and resumed"}
    known = [
        ("Model", head["model"]),
        ("Data", _data(run)),
        ("Start", "; ".join(head.get("start", [])) or DASH),
        *row_facts(run),
        *(("Scores", note) for note in head.get("notes", ())),
        *(("Published", f"{whose}: {number_text(x)}") for whose, x in published(run).items()),
        ("Clients", f"{head['num_clients']}, {head['clients_per_round']} per round"),
        ("Rounds", f"{run.num_finished} of {head.get('planned_rounds', head['num_rounds'])}"),
        ("Ended", head.get("reason", DASH)),
        ("Aggregation", head["strategy"]),
        ("Robust rule", head.get("robust", DASH)),
        *spread_facts(run),
        *privacy_facts(run),
        ("Trained tokens", count_text(sum(c.get("tokens", 0) for c in done) or None)),
        ("Sent to clients", bytes_text(sum(c["bytes_down"] for c in done) or None)),
        ("Sent back", bytes_text(sum(c["bytes_up"] for c in done) or None)),
        ("Wall time" if run.end else "Time in rounds", seconds_text(_seconds(run))),
        ("Virtual time", seconds_text(max(run.virtual_clock.values(), default=None))),
        ("Clients that never trained", count_text(_idle(run) or None)),
        ("Updates refused or lost", count_text((len(run.clients) - len(done)) or None)),
        ("Clients not there in the last round", count_text(len(missing) or None)),
        ("Clients that withhold their scores", count_text(len(run.withheld) or None)),
        ("Clients without test rows", count_text(untested(run) or None)),
        ("Requests for scores without an answer", count_text(len(run.unscored) or None)),
        ("Interrupted", resumed.get(run.num_resumed, f"{run.num_resumed} times, and resumed")),
    ]
    return [(name, value) for name, value in known if value != DASH]


def published(run: Run) -> dict[str, float]:
    """Return scores to compare with, by whose they are; see `evaluation.published`."""
    start = "evaluation.published."
    found = {k.removeprefix(start): v for k, v in run.settings.items() if k.startswith(start)}
    return {whose: float(value) for whose, value in found.items()}


def details(run: Run) -> TextTable:
    """Return the settings and totals that few readers ask for."""
    end = run.end or {}
    starved, captured = DASH, DASH
    if run.by_client is not None:
        counts = run.by_client.sum(0)
        shares = starved_and_captured(counts)
        starved, captured = (f"{share * counts.size:.0f} of {counts.size}" for share in shares)
    known = [
        ("Rescaling", run.header["rescaling"]),
        ("Seed", str(run.header["seed"])),
        ("Over the ideal schedule", gap_text(run.rounds)),
        ("Starved experts", starved),
        ("Captured experts", captured),
        ("Workers replaced", count_text(run.num_replaced or None)),
        ("Adapter SHA-256", end.get("adapter_sha256", DASH)),
    ]
    pairs = [(name, value) for name, value in known if value != DASH]
    return pairs_table("Details", ("fact", "value"), pairs)


def next_steps(run: Run) -> list[tuple[str, str]]:
    """Return what a reader may do now, each with its command; nothing without an adapter."""
    steps = [] if run.complete else [("Continue it", "the same command again, with --resume auto")]
    if not (run.folder / "adapter-last.safetensors").exists():
        return steps
    folder = shlex.quote(str(run.folder))
    return [
        *steps,
        ("Ask the adapter", f"fedmoe generate --run {folder} 'your prompt'"),
        ("Try it from other programs, at every tier", f"fedmoe serve {folder}"),
        ("Score it on other rows", f"fedmoe evaluate {folder} --data FILE"),
        ("See which experts carry which rows", f"fedmoe explain {folder}"),
        ("Make a PEFT adapter of it", f"fedmoe export {folder} my-adapter"),
        ("Compare it with another run", f"fedmoe compare {folder} OTHER_RUN"),
    ]


def _idle(run: Run) -> int:
    """Return the clients of which no update arrived, once each had a chance to be drawn."""
    asked = {line["client"] for line in run.clients}
    return len(asked - {line["client"] for line in run.ok()})


def _data(run: Run) -> str:
    """Return the data's name and the file's or the data set's."""
    path = run.settings.get("data.path", "")
    parts = run.settings.get("data.name", ""), path.rpartition("/")[2] if path else ""
    return " ".join(part for part in parts if part and part != "null") or DASH


def _seconds(run: Run) -> float | None:
    return run.end["seconds"] if run.end else sum(r["seconds"] for r in run.rounds) or None


def _mean(curves: Sequence[Sequence[Record]], place: int, name: str) -> float | None:
    values = [curve[place][name] for curve in curves]
    return None if None in values else sum(values) / len(values)


def _change(run: Run, split: str, curves: Sequence[Sequence[Record]]) -> str:
    first, last = curves[0][0]["round"], curves[0][-1]["round"]
    before, after = (_mean(curves, place, run.measure) for place in (0, -1))
    text = f"{split.capitalize()} {run.measure_name}"
    if len(curves) > 1:
        text += f", averaged over {len(curves)} budget tiers,"
    shown = percent_text if run.measure == "score" else number_text
    end = "."
    if run.measure == "loss" and run.scored:
        score = percent_text(_mean(curves, -1, "score"))
        end = f"; the {run.score_name} is {score} everywhere, before and after."
    elif run.measure == "score" and after is not None and run.is_share:
        low, high = wilson_interval(after, _examples(curves))
        end = f"; 95% interval {100 * low:.1f} to {100 * high:.1f}%."
    if before is None or after is None or shown(before) == shown(after):
        return f"{text} stayed at {shown(after)} from round {first} to round {last}{end}"
    base = "with the adapter it starts from" if run.header.get("start") else "without an adapter"
    since = base if first == 0 else f"after round {first}"
    return (
        f"{text} {'rose' if after > before else 'fell'} from {shown(before)} {since} "
        f"to {shown(after)} after round {last}{end}"
    )


def _examples(curves: Sequence[Sequence[Record]]) -> int:
    """Return the number of examples behind a mean of tiers; tiers with one test set share them."""
    last = [curve[-1] for curve in curves]
    own = any(line.get("clients") for line in last)
    return sum(e["examples"] for e in last) if own else min(e["examples"] for e in last)
