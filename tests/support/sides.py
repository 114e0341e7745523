"""A prepared run with something changed on both of its sides."""

from dataclasses import replace

from fedmoe.runs.prepare import Prepared


def changed(prepared, *, state_folder=None, **setup):
    """Return the run with other fields of its setup, or another folder of client states."""
    made = replace(prepared.setup, **setup)
    folder = state_folder or prepared.client.state_folder
    client = replace(prepared.client, setup=made, state_folder=folder)
    return Prepared(replace(prepared.server, setup=made), replace(prepared.scorer, client=client))
