"""Bad updates at the server: each is refused under a code, and the server's state does not move.

    python -m simulations.bad_inputs        (a minute on one CPU core; prints a page of Markdown)

Each line is a message as a client might send it that cheats or is broken. Result: `bad_inputs.md`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from fedmoe.adapter import Adapter, Layout, initial_adapter
from fedmoe.aggregation import Flame
from fedmoe.errors import WireError
from fedmoe.messages.codec import pack_update, sealed, unpack_update
from fedmoe.messages.records import Message, Task
from fedmoe.messages.validation import Limits
from fedmoe.rounds import ServerState, finish_round
from fedmoe.seeds import generator, numpy_rng
from simulations.benchmarks.idle import update_of

LAYERS, EXPERTS, TOKENS, TOP_K = 2, 4, 60, 2
LIMITS = Limits(
    examples=1000, delta=0.1, why="more than 5 steps of AdamW at this round's rate can move"
)
RANDOM = 10_000
"""Messages with random damage."""


def main() -> None:
    """Print the table."""
    task, message = honest()
    state = ServerState(0, task.adapter, {"low": task.rescaler})
    before = state.adapter.digest()
    print("| sent | result | reason |\n|---|---|---|")
    print(f"| an honest update | {result(message, task)[0]} | |")
    for what, changed in bad(message):
        code, words = result(changed, task)
        print(f"| {what} | {code} | {words} |")
        assert state.adapter.digest() == before, what
    print(f"\n{random_damage(message, task, state)}")


def honest() -> tuple[Task, Message]:
    """Return a task, and an update that answers it."""
    shapes = (("A", (EXPERTS, 2, 8)), ("B", (EXPERTS, 8, 2)))
    tensors = [
        (f"{layer}.{name}", shape, layer) for layer in range(LAYERS) for name, shape in shapes
    ]
    layout = Layout.of([*tensors], LAYERS, EXPERTS, 2, 4.0)
    adapter = initial_adapter(layout, generator(0, "door"))
    task = Task(1, 3, "low", TOP_K, torch.ones(LAYERS), adapter)
    counts = torch.tensor([[60, 50, 10, 0], [30, 30, 30, 30]])
    flat = torch.randn(layout.size, generator=generator(1, "door")) * 0.01
    for entry, view in layout.views(flat):
        view[counts[entry.layer] == 0] = 0
    update = update_of(task, Adapter(layout, flat), examples=100)
    update = replace(update, counts=counts, tokens=TOKENS, steps=5)
    return task, sealed(pack_update(update))


def bad(message: Message) -> Iterator[tuple[str, Message]]:
    """Yield what a bad client may send; from the tenth line on it is honestly sealed."""
    scalars, data = message.scalars, bytes(message.buffer)
    yield "one bit of the values flipped on the way", replace(message, buffer=flipped(data))
    yield "nothing at all", Message("", b"")
    yield "no JSON", Message("{", data)
    yield "JSON nested 100,000 deep", Message("[" * 10**5, data)
    yield "a buffer cut short", Message(scalars, data[:-4])
    yield "a buffer of a megabyte more", Message(scalars, data + bytes(2**20))
    yield "random bytes of the right size", Message(scalars, numpy_rng(1, "door").bytes(len(data)))
    rescaler, value = 8 * LAYERS * EXPERTS, len(data) - 4
    for what, at, number in (
        ("NaN in the values", value, np.float32("nan")),
        ("infinity in the values", value, np.float32("inf")),
        ("a value of 1e15", value, np.float32(1e15)),
        ("a value of 0.5, which training cannot reach", value, np.float32(0.5)),
        ("a changed rescaling factor", rescaler, np.float32(3)),
        ("counts that do not add up", 0, np.int64(59)),
        ("a negative count", 0, np.int64(-40)),
        ("a count of 2^62", 0, np.int64(2**62)),
    ):
        new = number.tobytes()
        yield what, sealed(Message(scalars, data[:at] + new + data[at + len(new) :]))
    for what, values in (
        ("another round's update, sent again", {"round": 7}),
        ("another client's", {"client": 4}),
        ("of another tier", {"tier": "high"}),
        ("of more experts than asked for", {"top_k": 4}),
        ("of another model or rank", {"layout": "0" * 16}),
        ("a claim of 10 million examples", {"examples": 10**7}),
        ("a claim of -1 examples", {"examples": -1}),
        ("a claim of 0 tokens", {"tokens": 0}),
        ("a claim of 10^30 steps", {"steps": 10**30}),
        ("seconds of -1", {"seconds": -1.0}),
        ("a loss that is text", {"loss_after": "low"}),
        ("a field too many", {"admin": True}),
    ):
        yield what, sealed(Message(json.dumps(json.loads(scalars) | values), data))


def result(message: Message, task: Task) -> tuple[str, str]:
    """Return `taken`, or the code of the refusal; and the reason."""
    try:
        unpack_update(message, task.adapter.layout, task, limits=LIMITS)
    except WireError as error:
        words = str(error).replace("|", "\\|").replace("\n", " ")
        return f"refused: `{error.code}`", words if len(words) < 140 else words[:137] + "..."
    return "taken", ""


def random_damage(message: Message, task: Task, state: ServerState) -> str:
    """Say what comes of many messages with up to 16 bytes changed, and no checksum to tell."""
    rng, found, before = numpy_rng(0, "door"), Counter[str](), state.adapter.digest()
    for _ in range(RANDOM):
        data = flipped(bytes(message.buffer), int(rng.integers(1, 17)), rng)
        try:
            damaged = Message(message.scalars, data)
            taken = unpack_update(damaged, task.adapter.layout, task, limits=LIMITS)
        except WireError as error:
            found[f"refused: `{error.code}`"] += 1
        else:
            found["taken"] += 1
            assert taken.delta.flat.abs().max() <= LIMITS.delta
            assert finish_round(state, Flame(), [taken]).adapter.flat.isfinite().all()
        assert state.adapter.digest() == before
    said = ", ".join(f"{what} {number:,}" for what, number in found.most_common())
    return (
        f"{RANDOM:,} messages with 1 to 16 random bytes changed and no checksum (over a network "
        f"there is one, which refuses all of them): {said}; what was taken was finite and within "
        "bounds. No crash, and the state was bitwise identical after each."
    )


def flipped(data: bytes, number: int = 0, rng: np.random.Generator | None = None) -> bytes:
    """Return the bytes with `number` of them changed; without `rng`, with one bit of the last."""
    changed = bytearray(data)
    changed[-1] ^= rng is None
    for at in () if rng is None else rng.integers(len(data), size=number):
        changed[at] ^= int(rng.integers(1, 256)) if rng else 0
    return bytes(changed)


if __name__ == "__main__":
    main()
