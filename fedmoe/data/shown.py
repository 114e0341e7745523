"""Examples as they are trained on, for a reader: decoded, with the learnt part marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from fedmoe.data.templates import template_of
from fedmoe.data.text import TextSettings, Tokens

BLOCKS = "▁▂▃▄▅▆▇█"
COLUMNS = 24
"""Blocks of the histogram at most."""


def pieces(row: Tokens, tokenizer: Any) -> list[tuple[str, bool]]:
    """Return the decoded text of an example in pieces, each with whether it is learnt.

    Control tokens are shown, too.
    """
    found, at, said = [], 0, ""
    edges = [edge for start, end in row.learnt for edge in ((start, False), (end, True))]
    for until, learnt in [*edges, (len(row.ids), False)]:
        # From the beginning on: some tokenizers drop the first space of what they decode.
        text = tokenizer.decode([*row.ids[:until]], skip_special_tokens=False)
        if not text.startswith(said):
            said, text = "", tokenizer.decode([*row.ids[at:until]], skip_special_tokens=False)
        if until > at:
            found.append((text[len(said) :], learnt))
        at, said = until, text
    return found


def template_line(tokenizer: Any, settings: TextSettings) -> str:
    """Return by which template examples are worded, and a digest of it."""
    template = template_of(tokenizer, settings)
    return f"template: {template.name}, sha256 {template.digest}"


def length_lines(rows: Sequence[Tokens]) -> Iterator[str]:
    """Yield how long examples are, and how much of them is learnt.

    Example:
        >>> rows = [Tokens((1,) * n, 4) for n in (8, 8, 8, 9, 16)]
        >>> print("\\n".join(length_lines(rows)))
        tokens of an example: 8 █▄▁▁▁▁▁▁▄ 16, median 8
        learnt: 29 of 49 tokens (59%)
    """
    lengths = [len(row.ids) for row in rows]
    least, most = min(lengths), max(lengths)
    columns = min(COLUMNS, most - least + 1)
    counts = [0] * columns
    for length in lengths:
        counts[(length - least) * columns // (most - least + 1)] += 1
    # A column with any example at all is higher than an empty one.
    heights = [-(-n * (len(BLOCKS) - 1) // max(counts)) for n in counts]
    bars = "".join(BLOCKS[height] for height in heights)
    yield f"tokens of an example: {least:,} {bars} {most:,}, median {median(lengths):,.0f}"
    learnt, every = sum(row.num_targets for row in rows), sum(lengths)
    yield f"learnt: {learnt:,} of {every:,} tokens ({learnt / every:.0%})"
