"""Prepared runs: with something changed on both sides, and run over any transport."""

from dataclasses import replace

from fedmoe.rounds import run_rounds
from fedmoe.runs.prepare import Prepared


def changed(prepared, *, state_folder=None, **setup):
    """Return the run with other fields of its setup, or another folder of client states."""
    made = replace(prepared.setup, **setup)
    folder = state_folder or prepared.client.state_folder
    client = replace(prepared.client, setup=made, state_folder=folder)
    return Prepared(replace(prepared.server, setup=made), replace(prepared.scorer, client=client))


def run_over(prepared, transport, *, num_rounds, clients_per_round):
    """Return the state after the rounds of a prepared run over a transport."""
    return run_rounds(
        prepared.server.first_state(),
        prepared.server.members,
        prepared.setup.experiment.aggregation,
        transport,
        [],
        num_rounds=num_rounds,
        clients_per_round=clients_per_round,
        seed=prepared.setup.experiment.seed,
        robust=prepared.setup.experiment.robust_rule,
    )
