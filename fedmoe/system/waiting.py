"""Word of what is waited for, with the time spent."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 10.0
"""Seconds between two lines, where there is no terminal."""


@contextmanager
def waiting(what: str, every: float = EVERY) -> Iterator[None]:
    """Say what is waited for on stderr, and how long by now, until the block ends.

    A terminal has one line that is kept up to date; a file gets a line from time to time.
    """
    begun, done, live = time.monotonic(), threading.Event(), sys.stderr.isatty()

    def say(end: str) -> None:
        spent = f", {time.monotonic() - begun:.0f} s"
        print(f"fedmoe: {what}{spent}", end=end, file=sys.stderr, flush=True)

    def repeat() -> None:
        while not done.wait(1.0 if live else every):
            say("\r" if live else "\n")

    say("\r" if live else "\n")
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if live:
            say("\n")
