"""Estimates from a run's ledger alone: whether it is at work, its activity, and the time left."""

from __future__ import annotations

from fedmoe.report.run import Run
from fedmoe.watch.state import Phase

SHORTEST_SILENCE = 120.0
"""Seconds without a line that mean nothing, however fast the run is."""
FIRST_SILENCE = 900.0
"""The same before the first answer: a large base model may be at its first evaluation."""
TIMES_LONGEST = 4.0
"""A run is silent after this many times its longest explained wait so far."""


def phase(run: Run, quiet_seconds: float) -> Phase:
    """Return the phase of a run whose last line is `quiet_seconds` old.

    A killed run cannot be told from one at a long piece of work: this is a guess, made late
    rather than early.
    """
    if run.end is not None:
        return "finished"
    return "silent" if quiet_seconds > patience(run) else "running"


def patience(run: Run) -> float:
    """Return the seconds without a line after which a run counts as silent."""
    if not run.clients:
        return FIRST_SILENCE
    waits = [r["seconds"] for r in run.rounds] + [c.get("seconds", 0.0) for c in run.ok()]
    waits += [_seconds_of(run, split, number) for split, number in _measured(run)]
    return max(SHORTEST_SILENCE, TIMES_LONGEST * max(waits, default=0.0))


def activity(run: Run) -> str:
    """Return the current activity of a run without an end, in a few words."""
    done, planned = run.num_finished, run.header["num_rounds"]
    if not run.evaluations and not run.clients:
        return "scoring the base model"
    if any(c["round"] > done for c in run.clients):
        return f"training in round {done + 1}"
    if _to_be_scored(run):
        return f"scoring after round {done}"
    return "scoring for the last time" if done == planned else f"training in round {done + 1}"


def seconds_left(run: Run, heard: int, expected: int, quiet_seconds: float) -> float | None:
    r"""Return the seconds to the end at the pace so far; None before the first round's end.

    $$(N - n)(\bar r + \bar v / m) - \bar r\,h / e + p - q + t$$

    N rounds, n of them finished, which took r each; v to score one of them, every m rounds; h of e
    clients heard in the present round; p is v if the last round is yet to be scored; q seconds
    since the last line, at most one round's; t for the test scores at the end, which are taken to
    last as long as those of the base model. Evaluations of several tiers are shared by the workers.
    """
    n, every = run.num_finished, scored_every(run)
    if not n:
        return None
    r = sum(line["seconds"] for line in run.rounds) / len(run.rounds)
    workers = max(line.get("workers", 1) for line in run.rounds)
    scored = [_seconds_of(run, split, i) for split, i in _measured(run) if split == "validation"]
    v = sum(scored) / len(scored) / workers if scored else 0.0
    t = _seconds_of(run, "test", 0) / workers
    rest = (run.header["num_rounds"] - n) * (r + (v / every if every else 0.0))
    rest += v * _to_be_scored(run) - r * (heard / expected if expected else 0.0)
    return max(0.0, rest - min(quiet_seconds, r + v)) + t


def scored_every(run: Run) -> int:
    """Return the rounds between evaluations on validation data; 0 for none."""
    text = run.settings.get("evaluation.every", "1")
    return int(text) if text.isdecimal() else 1


def _to_be_scored(run: Run) -> bool:
    """Return True if the last finished round has a validation score to come."""
    done, every = run.num_finished, scored_every(run)
    due = done and every and (done % every == 0 or done == run.header["num_rounds"])
    return bool(due) and ("validation", done) not in _measured(run)


def _measured(run: Run) -> set[tuple[str, int]]:
    return {(e["split"], e["round"]) for e in run.evaluations}


def _seconds_of(run: Run, split: str, number: int) -> float:
    return sum(e["seconds"] for e in run.evaluations if (e["split"], e["round"]) == (split, number))
