"""From a run's folder to its state: tiers, clients of the round, failures, expert load."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedmoe.messages.records import CLIENT_FIELDS
from fedmoe.report.expert_load import relative_shares, starved_and_captured
from fedmoe.report.facts import facts, headline
from fedmoe.report.ledger import Record
from fedmoe.report.run import Run, TierCost
from fedmoe.watch.estimates import activity, phase, seconds_left
from fedmoe.watch.state import ClientState, ExpertLoad, FailureGroup, RunState, Score, TierState


def run_state(run: Run, name: str, last_line: float, now: float) -> RunState:
    """Return the state of a run.

    Args:
        last_line: time of the last write to its ledger, in seconds since 1970.
        now: the present time, likewise.
    """
    quiet = max(0.0, now - last_line)
    at, done, planned = phase(run, quiet), run.num_finished, run.header["num_rounds"]
    number = done if at == "finished" or done == planned else done + 1
    clients, unnamed = clients_of_round(run, number)
    heard = sum(c.state != "awaited" for c in clients) if number > done else 0
    left = seconds_left(run, heard, len(clients) + unnamed, quiet) if at == "running" else None
    return RunState(
        run=name,
        name=run.header["name"],
        phase=at,
        activity="finished" if at == "finished" else activity(run),
        **{key: run.header[key] for key in ("model", "strategy", "rescaling", "seed")},
        num_rounds=planned,
        num_finished=done,
        round=number,
        seconds_left=left,
        seconds=run.end["seconds"] if run.end else sum(r["seconds"] for r in run.rounds) or None,
        last_line=last_line,
        quiet_seconds=quiet,
        clients=clients,
        unnamed=unnamed,
        tiers=tuple(_tier(run, tier) for tier in run.tiers),
        score_name=run.score_name,
        quarantine=failure_groups(run),
        experts=_expert_load(run),
        num_replaced=run.num_replaced,
        virtual_clock=max(run.virtual_clock.values(), default=None),
        headline=headline(run),
        facts=tuple(facts(run)),
        advice=_advice(run) if at == "silent" else None,
    )


def clients_of_round(run: Run, number: int) -> tuple[tuple[ClientState, ...], int]:
    """Return a round's clients by id, and the number of others whose names are not known yet."""
    lines = {c["client"]: c for c in run.clients if c["round"] == number}
    answered = {client: _answered(run, line) for client, line in lines.items()}
    awaited, unnamed = {}, 0
    if number > run.num_finished:
        if step := _answers_per_step(run):
            unnamed = max(0, step - len(lines))
        else:
            awaited = {c: _awaited(run, c) for c in participants(run, number)}
    return tuple(state for _, state in sorted((awaited | answered).items())), unnamed


def participants(run: Run, number: int) -> list[int]:
    """Return the clients of a round, drawn as the round loop draws them.

    They depend on `(seed, round)`, the tiers and who is there. The ledger has no line for a client
    before it answers, so the names of awaited clients must be drawn again.
    """
    # Only a run without an end needs them, and torch takes seconds to import.
    from fedmoe.rounds import Member, ServerState, plan_round

    members = [Member(c, t.name, t.top_k, t.availability) for t in run.tiers for c in t.clients]
    members.sort(key=lambda member: member.client)
    # Who is there is written down when a round begins; until then, as in the one before.
    last = max((n for n in run.away if n <= number), default=0)
    away = run.away.get(last, frozenset())
    members = [replace(m, availability=0.0) if m.client in away else m for m in members]
    # Without an adapter: these tasks are not carried out.
    state = ServerState(number - 1, None, {t.name: None for t in run.tiers})  # type: ignore[arg-type]
    tasks = plan_round(state, members, run.header["clients_per_round"], run.header["seed"])
    return [task.client for task in tasks]


def failure_groups(run: Run) -> tuple[FailureGroup, ...]:
    """Return all failures grouped by their reason, the most frequent first.

    Two reasons are the same if they have one code and differ in numbers only.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for line in run.clients:
        if line["status"] == "failed":
            words = re.sub(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?", "#", line["reason"])
            groups.setdefault((line.get("code", ""), words), []).append(line)
    found = [
        FailureGroup(
            reason=lines[-1]["reason"],
            code=code,
            count=len(lines),
            clients=(clients := tuple(sorted({line["client"] for line in lines}))),
            names=tuple(map(run.name_of, clients)),
            last_round=lines[-1]["round"],
        )
        for (code, _), lines in groups.items()
    ]
    return tuple(sorted(found, key=lambda group: (-group.count, group.reason)))


def _answers_per_step(run: Run) -> int | None:
    """Return the answers that an asynchronous server waits for; None for a run with rounds.

    Such a server takes clients as they finish in virtual time: nobody knows the next ones.
    """
    return run.header.get("updates_per_step")


def _answered(run: Run, line: Record) -> ClientState:
    return ClientState(
        line["client"],
        run.name_of(line["client"]),
        line["tier"],
        line["top_k"],
        state="ok" if line["status"] == "ok" else "failed",
        reported={f.name: line.get(f.name) for f in CLIENT_FIELDS},
        **{name: line.get(name) for name in ("reason", "virtual_seconds", "staleness")},
    )


def _awaited(run: Run, client: int) -> ClientState:
    tier = run.tier_of(client)
    return ClientState(client, run.name_of(client), tier.name, tier.top_k, "awaited")


def _tier(run: Run, tier: TierCost) -> TierState:
    done = run.ok(tier=tier.name)
    sums = {
        name: sum(c[name] for c in done) for name in ("tokens", "seconds", "bytes_down", "bytes_up")
    }
    scores = sorted(
        (e for e in run.evaluations if e["tier"] == tier.name),
        # The test scores of the last round come after its validation scores.
        key=lambda e: (e["round"], e["split"] == "test"),
    )
    return TierState(
        name=tier.name,
        top_k=tier.top_k,
        num_clients=len(tier.clients),
        device=tier.device.label if tier.device else None,
        answers=len(done),
        failures=sum(c["tier"] == tier.name and c["status"] == "failed" for c in run.clients),
        **sums,
        scores=tuple(Score(e["split"], e["round"], e["score"], e["loss"]) for e in scores),
    )


def _expert_load(run: Run) -> ExpertLoad | None:
    """Return load, starved and captured experts; None before the first round's end."""
    if run.by_client is None:
        return None
    counts = run.by_client.sum(0)
    starved, captured = (round(s * counts.size) for s in starved_and_captured(counts))
    load = tuple(_row(layer) for layer in relative_shares(counts))
    return ExpertLoad(counts.size, starved, captured, load)


def _row(layer: Sequence[float] | np.ndarray) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else round(float(value), 3) for value in layer)


def _advice(run: Run) -> str:
    done = run.num_finished
    begun = f"Round {done} is the last one finished" if done else "No round was finished"
    return (
        f"{begun}. If its process is gone, start the same command again with --resume auto; a "
        "comparison that is started again repeats only runs without an end."
    )
