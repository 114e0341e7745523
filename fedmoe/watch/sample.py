"""Who takes part in a round, drawn again as the round loop draws it."""

from __future__ import annotations

from fedmoe.report.run import Run


def sample_of(run: Run, number: int) -> list[int]:
    """The clients of a round: they depend on `(seed, round)` and the tiers alone.

    The ledger has no line for a client before it answers, so that whoever is awaited must be drawn.
    """
    # Only a run that has no end is asked for its next clients: torch takes seconds to import.
    from fedmoe.rounds import Member, ServerState, plan_round

    members = [Member(c, t.name, t.top_k, t.availability) for t in run.tiers for c in t.clients]
    members.sort(key=lambda member: member.client)
    # Without an adapter: the tasks are not to be carried out.
    state = ServerState(number - 1, None, {t.name: None for t in run.tiers})  # type: ignore[arg-type]
    tasks = plan_round(state, members, run.header["clients_per_round"], run.header["seed"])
    return [task.client for task in tasks]
