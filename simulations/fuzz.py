"""Broken and hostile messages of every kind that crosses a boundary: each is taken or refused.

    python -m simulations.fuzz 100000      (5 minutes on one CPU core; prints a table)

Each is an honest message of `crossings.py` with one to three things wrong: a value of another kind
or size, a name too few, too many or twice, other letters or bytes, another length. It ends with a
traceback at the first that is neither, or that changes what its receiver keeps. Result: `fuzz.md`.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clients.worker_frames import FrameError, Gone
from fedmoe.errors import WireError
from simulations.crossings import Kind, kinds

DIGIT = "\U00010d40"
"""A digit for Rust's regular expressions, and none for Python 3.11."""
STRANGE: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 10**30, 10**4000, 1e308, -1e-320, DIGIT]
STRANGE += ["", "x", "٣", "²", "a\u200d", "\ud83d", "\x00\x1b[2J", "9" * 5000, "ä" * 10**5, "1,2"]
STRANGE += ["../..", "//[", [], {}, [[1] * 50] * 50, {"a": {"b": 1}}, float("nan"), float("-inf")]
NAMES = ["self", "__dataclass_self__", "", "a\nb", "metrics", "rows", "reason", "kind", "é" * 300]
LETTERS = [*'{}[]",:0 a\\\x00\r\n٣é', "[" * 10**5]
LONGEST_REFUSAL = 500


def spoilt(kind: Kind, rng: random.Random) -> tuple[str, bytes]:
    """Return the honest message with one to three things wrong."""
    values, data, text = dict(kind.values), bytearray(kind.buffer), ""
    for _ in range(rng.randint(1, 3)):
        name, at = rng.choice([*values, ""]), rng.randrange(len(data) + 1)
        match rng.randrange(8):
            case 0 | 1:
                values[name] = rng.choice(STRANGE)
            case 2:
                values[rng.choice(NAMES)] = rng.choice(STRANGE)
            case 3:
                values.pop(name, None)
            case 4:
                data[at:at] = rng.randbytes(rng.choice([1, 8, 1000]))
            case 5:
                data[at : at + 8] = rng.randbytes(rng.choice([0, 1, 8]))
            case 6:
                text = json.dumps(values)
                at = rng.randrange(len(text))
                text = text[:at] + rng.choice(LETTERS) + text[at + 1 :]
            case _:
                text = json.dumps(values)[:-1] + f", {json.dumps(name)}: 1}}"
    return text or json.dumps(values), bytes(data)


def fuzz(kind: Kind, number: int, seed: str) -> tuple[int, int]:
    """Send that many spoilt messages; return how many were taken, and how many refused."""
    rng, before, taken, longest = random.Random(seed), kind.state(), 0, 0
    kind.receive(json.dumps(kind.values), kind.buffer)
    for _ in range(number):
        try:
            kind.receive(*spoilt(kind, rng))
            taken += 1
        except (WireError, FrameError, Gone) as error:
            longest = max(longest, len(str(error)))
        assert kind.state() == before
    assert longest <= LONGEST_REFUSAL, longest
    return taken, number - taken


def memory_bytes() -> int:
    """Return what this process holds in memory."""
    return 4096 * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


def main() -> None:
    """Print a line a kind."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(
        "| message | sent | taken | refused | memory before and after, MB |\n|---|--:|--:|--:|---|"
    )
    with TemporaryDirectory() as folder:
        (Path(folder) / "ledger.jsonl").write_text("{}\n")
        for name, kind in kinds(Path(folder)):
            fuzz(kind, number // 50, "first")  # whatever is compiled or cached at its first use
            before = memory_bytes()
            taken, refused = fuzz(kind, number, name)
            memory = f"{before / 1e6:.0f}, {memory_bytes() / 1e6:.0f}"
            print(f"| {name} | {number:,} | {taken:,} | {refused:,} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
