"""`python -m simulations.benchmarks.flower_noop`: Flower's Ray engine, its client idle.

Prints seconds per round, a line each: the first has Ray's start in it. A process of its own, since
Ray leaves threads, environment variables and child processes behind.
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


def main() -> None:
    """Run as many rounds as the argument says, of one client on each of two nodes."""
    rounds, client, server = int(sys.argv[1]), ClientApp(), ServerApp()

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
    """Everything out, everything back, averaged."""
    arrays = ArrayRecord({name: Array(values) for name, values in state.items()})
    content = RecordDict({"arrays": arrays})
    messages = [Message(content, node, MessageType.TRAIN) for node in nodes]
    sums = {name: np.zeros(VALUES, np.float64) for name in state}
    for reply in grid.send_and_receive(messages):
        returned = reply.content["arrays"]
        assert isinstance(returned, ArrayRecord)
        for name, array in returned.items():
            sums[name] += array.numpy()
    return {name: (values / len(nodes)).astype(np.float32) for name, values in sums.items()}


if __name__ == "__main__":
    main()
