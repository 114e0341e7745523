"""The order of arrival of an asynchronous run, as its ledger has it, repeated in this process."""

from collections import defaultdict
from dataclasses import replace

from fedmoe.messages.records import Task
from fedmoe.rounds import run_rounds
from fedmoe.runs.local.in_process import InProcess


def order_of(records):
    """By server step: each update that arrived, as its client and the version that it started from.

    By client, as the ledger has them; that is the order in which they are summed.
    """
    steps = defaultdict(list)
    for line in records:
        if line["kind"] == "client" and line["status"] == "ok":
            version = line["round"] - 1 - line.get("staleness", 0)
            steps[line["round"]].append((line["client"], version))
    return dict(steps)


def repeated(prepared, order):
    """Return the last state of a run in this process in which updates arrive in that order."""
    server, states = prepared.server, {}
    e = server.setup.experiment

    def plan(state):
        states[state.round] = replace(state, memory={})
        return [task(client, version) for client, version in order[state.round + 1]]

    def task(client, version):
        m, state = server.members[client], states[version]
        adapter = server.send_to(state.adapter, m)
        return Task(version + 1, client, m.tier, m.top_k, state.rescalers[m.tier], adapter)

    return run_rounds(
        server.first_state(),
        server.members,
        e.aggregation,
        InProcess(server, prepared.scorer),
        [],
        num_rounds=len(order),
        clients_per_round=0,
        seed=e.seed,
        optimizer=e.server_optimizer,
        robust=e.robust_rule,
        plan=plan,
    )
