"""What the server's door does with bad updates: `python -m simulations.bad_inputs`, as Markdown.

Each line of the table is one message, sent to the door of a run as it would be by a client that
lies, is broken, or has a bad line. Nothing here is written down beforehand but what is sent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedmoe.adapter import Adapter, Layout, initial_adapter
from fedmoe.aggregation import Flame
from fedmoe.errors import WireError
from fedmoe.messages.codec import Message, Task, Update, pack_update, sealed, unpack_update
from fedmoe.messages.validation import Limits
from fedmoe.rounds import ServerState, finish_round
from fedmoe.seeds import generator, numpy_rng

LAYERS, EXPERTS, TOKENS, TOP_K = 2, 4, 60, 2
LIMITS = Limits(examples=1000, delta=0.1, why="ten times what 5 steps of AdamW can move")
RANDOM = 10_000
"""Messages with random damage."""

Change = Callable[[Message], Message]


def main() -> None:
    """Print the table."""
    task, message = honest()
    state = ServerState(0, task.adapter, {"low": task.rescaler})
    before = state.adapter.digest()
    print("| what was sent | what happened | in words |\n|---|---|---|")
    print(f"| an honest update | {happened(message, task)[0]} | |")
    for what, change in bad():
        code, words = happened(change(message), task)
        print(f"| {what} | {code} | {words} |")
        assert state.adapter.digest() == before, what
    print(f"\n{random_damage(message, task, state)}")


def honest() -> tuple[Task, Message]:
    """A task, and an update that answers it."""
    tensors: list[tuple[str, tuple[int, ...], int | None]] = []
    for layer in range(LAYERS):
        tensors.append((f"{layer}.A", (EXPERTS, 2, 8), layer))
        tensors.append((f"{layer}.B", (EXPERTS, 8, 2), layer))
    layout = Layout.of(tensors, LAYERS, EXPERTS, 2, 4.0)
    adapter = initial_adapter(layout, generator(0, "door"))
    task = Task(1, 3, "low", TOP_K, torch.ones(LAYERS), adapter)
    counts = torch.tensor([[60, 50, 10, 0], [30, 30, 30, 30]])
    flat = torch.randn(layout.size, generator=generator(1, "door")) * 0.01
    for entry, view in layout.views(flat):
        view[counts[entry.layer] == 0] = 0
    update = Update(
        1,
        3,
        "low",
        TOP_K,
        task.rescaler,
        Adapter(layout, flat),
        counts,
        examples=100,
        tokens=TOKENS,
        steps=5,
        loss_before=2.0,
        loss_after=1.5,
        seconds=3.2,
        peak_bytes=10**8,
    )
    return task, sealed(pack_update(update))


def bad() -> Iterator[tuple[str, Change]]:
    """What a bad client may send."""
    yield "one bit of the values flipped on the way", lambda m: replace(m, buffer=flip(m.buffer))
    yield "nothing at all", lambda m: Message("", b"")
    yield "no JSON", lambda m: Message("{", m.buffer)
    yield "JSON nested 100,000 deep", lambda m: Message("[" * 10**5, m.buffer)
    yield "a buffer cut short", lambda m: Message(m.scalars, m.buffer[:-4])
    yield (
        "a buffer of a megabyte more",
        lambda m: Message(m.scalars, bytes(m.buffer) + bytes(2**20)),
    )
    yield "random bytes of the right size", lambda m: Message(m.scalars, noise(len(m.buffer)))
    yield "NaN in the values", lambda m: value_of(m, float("nan"))
    yield "infinity in the values", lambda m: value_of(m, float("inf"))
    yield "a value of 1e15", lambda m: value_of(m, 1e15)
    yield "a value of 0.5, which training cannot reach", lambda m: value_of(m, 0.5)
    yield "a changed rescaling factor", lambda m: rescaler_of(m, 3.0)
    yield "counts that do not add up", lambda m: count_of(m, 0, 59)
    yield "a negative count", lambda m: count_of(m, 0, -40)
    yield "a count of 2^62", lambda m: count_of(m, 0, 2**62)
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
        yield what, lambda m, values=values: scalars_of(m, values)


def happened(message: Message, task: Task) -> tuple[str, str]:
    """What the door says: `taken`, or the code of its refusal; and the reason."""
    try:
        unpack_update(message, task.adapter.layout, task, limits=LIMITS)
    except WireError as error:
        words = str(error).replace("|", "\\|").replace("\n", " ")
        return f"refused: `{error.code}`", words if len(words) < 140 else words[:137] + "..."
    return "taken", ""


def random_damage(message: Message, task: Task, state: ServerState) -> str:
    """What comes of many messages with up to 16 bytes changed, and no checksum to tell."""
    rng, found, before = numpy_rng(0, "door"), Counter[str](), state.adapter.digest()
    for _ in range(RANDOM):
        damaged = Message(message.scalars, flip(message.buffer, int(rng.integers(1, 17)), rng))
        try:
            taken = unpack_update(damaged, task.adapter.layout, task, limits=LIMITS)
        except WireError as error:
            found[f"refused: `{error.code}`"] += 1
        else:
            found["taken"] += 1
            assert taken.delta.flat.abs().max() <= LIMITS.delta
            assert finish_round(state, Flame(), [taken]).adapter.flat.isfinite().all()
        assert state.adapter.digest() == before
    told = ", ".join(f"{what} {number:,}" for what, number in found.most_common())
    return (
        f"{RANDOM:,} messages with 1 to 16 random bytes changed and no checksum (over a network "
        f"there is one, which refuses all of them): {told}; what was taken was finite and within "
        "bounds. No crash, and the state was the same to the bit after each."
    )


def flip(buffer: Any, number: int = 1, rng: np.random.Generator | None = None) -> bytes:
    """The bytes with `number` of them changed; by default one bit of the last."""
    data = bytearray(buffer)
    if rng is None:
        data[-1] ^= 1
        return bytes(data)
    for at in rng.integers(len(data), size=number):
        data[at] ^= int(rng.integers(1, 256))
    return bytes(data)


def noise(number: int) -> bytes:
    """Random bytes."""
    return numpy_rng(1, "door").bytes(number)


def value_of(message: Message, value: float) -> Message:
    """The update with another last value, honestly sealed."""
    data = bytes(message.buffer)[:-4] + np.float32(value).tobytes()
    return sealed(Message(message.scalars, data))


def count_of(message: Message, place: int, count: int) -> Message:
    """The update with another count, honestly sealed."""
    data = bytearray(message.buffer)
    data[8 * place : 8 * place + 8] = np.int64(count).tobytes()
    return sealed(Message(message.scalars, bytes(data)))


def rescaler_of(message: Message, factor: float) -> Message:
    """The update with another first factor, honestly sealed."""
    data, start = bytearray(message.buffer), 8 * LAYERS * EXPERTS
    data[start : start + 4] = np.float32(factor).tobytes()
    return sealed(Message(message.scalars, bytes(data)))


def scalars_of(message: Message, values: dict[str, Any]) -> Message:
    """The update with other scalars, honestly sealed."""
    return sealed(Message(json.dumps(json.loads(message.scalars) | values), message.buffer))


if __name__ == "__main__":
    main()
