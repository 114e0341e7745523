"""Limits on the cost of a request, and on how many wait."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on requests; beyond them a request is refused, and never cut."""

    body_bytes: int = 1 << 20
    """The longest request."""
    prompt_tokens: int = 8192
    """The longest prompt, with its conversation; a model may have positions for less."""
    new_tokens: int = 512
    """The longest answer; also of a request that does not say how long."""
    seconds: float = 120.0
    """From a request's arrival to the end of its answer."""
    queue: int = 8
    """Requests that wait while another one is answered."""
    idle_seconds: float = 10.0
    """For the head of a request to arrive, and for its body."""
    connections: int = 64
    """Connections at a time."""
