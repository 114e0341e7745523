"""`python -m simulations.benchmarks.flower_idle ROUNDS`: Flower's Ray engine with idle clients.

Prints the seconds of each round; the first includes Ray's start. A separate process, since Ray
leaves threads, environment variables and child processes behind.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

NUM_TENSORS, VALUES, NODES = 6144, 256, 2


def main(rounds: int) -> None:
    """Carry out rounds of one client on each of two nodes."""
    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"]
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        state = {f"t{i}": np.zeros(VALUES, np.float32) for i in range(NUM_TENSORS)}
        while len(nodes := list(grid.get_node_ids())) < NODES:
            time.sleep(0.1)
        for _ in range(rounds):
            started = time.monotonic()
            state = one_round(grid, nodes, state)
            print("seconds", time.monotonic() - started, flush=True)

    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": NODES}}
    run_simulation(server, client, NODES, backend_config=resources)  # pyright: ignore


def one_round(grid: Grid, nodes: list[int], state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Send everything, take everything back, and average it by name."""
    content = RecordDict({"arrays": ArrayRecord({k: Array(v) for k, v in state.items()})})
    replies = grid.send_and_receive([Message(content, n, MessageType.TRAIN) for n in nodes])
    returned = [reply.content["arrays"] for reply in replies]
    sums = {name: np.zeros(VALUES, np.float64) for name in state}
    for arrays in returned:
        assert isinstance(arrays, ArrayRecord)
        for name, array in arrays.items():
            sums[name] += array.numpy()
    return {name: (values / len(nodes)).astype(np.float32) for name, values in sums.items()}


if __name__ == "__main__":
    main(int(sys.argv[1]))
