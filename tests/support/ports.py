"""Ports that nobody listens on."""

import random
import socket
from contextlib import ExitStack


def free_ports(count):
    """Consecutive ports that are free now, below those that the system gives out by itself."""
    for first in random.SystemRandom().sample(range(15000, 30000), 100):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return list(range(first, first + count))
    raise AssertionError("no free ports")
