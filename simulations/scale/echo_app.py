"""A Flower app that sends arrays to nodes and others back, and times the SuperLink; see `link`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence

import numpy as np
import psutil
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server = ServerApp()
client = ClientApp()
IDLE_SECONDS = 10.0


def content_of(data: np.ndarray) -> RecordDict:
    """Return bytes as fedmoe sends them: one array, unnamed and unpickled."""
    array = Array("uint8", data.shape, "bytes", data.tobytes())
    return RecordDict({"arrays": ArrayRecord({"buffer": array})})


@client.train()
def answer(message: Message, context: Context) -> Message:
    """Return as many other bytes: Flower sends no object that the SuperLink has."""
    found = message.content.array_records["arrays"]["buffer"].data
    other = np.frombuffer(found, dtype=np.uint8) ^ np.uint8(1 + message.metadata.dst_node_id % 200)
    return Message(content_of(other), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Write a line of JSON for each exchange: bytes, seconds, and the SuperLink's own costs."""
    given = context.run_config
    link = psutil.Process(int(given["pid"]))
    while len(nodes := sorted(grid.get_node_ids())) < int(given["nodes"]):
        time.sleep(1.0)
    with open(str(given["out"]), "a", encoding="utf-8") as file:
        before = sum(link.cpu_times()[:2])
        time.sleep(IDLE_SECONDS)
        idle = (sum(link.cpu_times()[:2]) - before) / IDLE_SECONDS / len(nodes)
        print(json.dumps({"idle": idle, "nodes": len(nodes)}), file=file, flush=True)
        for size in json.loads(str(given["sizes"])):
            print(json.dumps(exchanged(grid, nodes, size, link)), file=file, flush=True)


def exchanged(
    grid: Grid, nodes: Sequence[int], size: int, link: psutil.Process
) -> dict[str, float]:
    """Return the costs of sending so many bytes to every node, and as many back."""
    data = np.frombuffer(os.urandom(size), dtype=np.uint8)
    messages = [Message(content_of(data), node, MessageType.TRAIN) for node in nodes]
    cpu, started = sum(link.cpu_times()[:2]), time.monotonic()
    replies = list(grid.send_and_receive(messages))
    seconds = time.monotonic() - started
    wrong = [str(reply.error) for reply in replies if reply.has_error()]
    return {
        "size": size,
        "answers": len(replies) - len(wrong),
        "wanted": len(nodes),
        "seconds": seconds,
        "link_cpu": sum(link.cpu_times()[:2]) - cpu,
        "link_rss": link.memory_info().rss,
        "fault": next(iter(wrong), ""),  # type: ignore[dict-item]
    }
