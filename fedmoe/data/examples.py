"""Examples, their train, validation and test splits, and the laws the splits keep."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from fedmoe.errors import DataError
from fedmoe.messages.rows import RowCounts
from fedmoe.seeds import numpy_rng

Share = Annotated[float, Field(ge=0, lt=1)]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One request and the answer we want, with what partitioning and splitting need to know."""

    prompt: str
    response: str
    label: str
    """The natural field to partition by: a device domain, a language, a task, a category."""
    group: str = ""
    """Template or phrasing; a group never straddles two splits. Empty: the prompt is the group."""
    extra: str = ""
    """JSON for a metric: the dataset's own verifier, or a row's options; empty where none needs it.
    """
    conversation: str = ""
    """All messages and tools as JSON (see `conversations.packed`), where the row is more than one
    prompt and one response: these are then all that comes before the last answer, and that."""


@dataclass(frozen=True)
class Splits:
    """Three sets of examples that share no prompt and no group."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    dropped: RowCounts = field(default_factory=RowCounts)
    """Rows that were read and are in none of the three, by the reason; a dataset that generates
    its rows reads no others than it returns."""
    form: str = field(default="", compare=False)
    """The format of the rows in words, where it was recognised by their columns."""

    @property
    def rows(self) -> RowCounts:
        """Return what became of every row that was read."""
        kept = {name: len(getattr(self, name)) for name in SPLITS}
        return RowCounts.of(**kept) + self.dropped


def prompt_key(prompt: str) -> str:
    """Return the key by which prompts are the same: words, not case or spacing."""
    return " ".join(prompt.casefold().split())


def exact_match(example: Example, answer: str) -> float:
    """Return 1 when the answer is the response but for spacing, else 0."""
    return float(answer.split() == example.response.split())


def drop_conflicts(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Keep the first response to every prompt; drop later examples that contradict it."""
    first: dict[str, str] = {}
    return tuple(
        e for e in examples if first.setdefault(prompt_key(e.prompt), e.response) == e.response
    )


def drop_repeats(splits: Splits) -> Splits:
    """Keep each prompt once: train wins over validation, validation over test."""
    seen: set[str] = set()

    def fresh(examples: Sequence[Example]) -> tuple[Example, ...]:
        kept = []
        for example in examples:
            if (key := prompt_key(example.prompt)) not in seen:
                seen.add(key)
                kept.append(example)
        return tuple(kept)

    return Splits(fresh(splits.train), fresh(splits.validation), fresh(splits.test))


def split_by_group(
    examples: Sequence[Example],
    seed: int,
    *,
    validation_share: float,
    test_share: float,
    stratum: Callable[[Example], str] = lambda example: example.label,
    repeats: bool = False,
) -> Splits:
    """Split whole groups, stratum by stratum, and drop prompts that would be shared.

    Every stratum keeps at least one group in train, so a stratum of one group is never tested.
    Shares are of groups; the fraction a small stratum cannot give is carried to the next one.

    Args:
        examples: in an order that does not depend on chance.
        stratum: the stratum of an example; a group belongs to that of its first example.
        repeats: keep every example, also where several have the same prompt: they, and the groups
            that they are in, are in one split.
    """
    strata: dict[str, list[Hashable]] = defaultdict(list)
    members: dict[Hashable, list[Example]] = defaultdict(list)
    groups = _joined(examples) if repeats else map(_group_of, examples)
    for example, group in zip(examples, groups, strict=True):
        if group not in members:
            strata[stratum(example)].append(group)
        members[group].append(example)

    held_out = _hold_out(strata, seed, {"test": test_share, "validation": validation_share})
    chosen: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for group, group_examples in members.items():
        chosen[held_out.get(group, "train")].extend(group_examples)
    train, validation, test = (tuple(chosen[name]) for name in SPLITS)
    splits = Splits(train, validation, test)
    return splits if repeats else drop_repeats(splits)


def _group_of(example: Example) -> str:
    return example.group or prompt_key(example.prompt)


def _joined(examples: Sequence[Example]) -> list[Hashable]:
    """Return a group for each example, so that those of one group or one prompt have the same."""
    parents: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while (parent := parents.setdefault(key, key)) != key:
            parents[key] = parents[parent]  # a shorter way for the next one
            key = parent
        return key

    keys = [("prompt", prompt_key(example.prompt)) for example in examples]
    for example, key in zip(examples, keys, strict=True):
        if example.group:
            parents[root(key)] = root(("group", example.group))
    return [root(key) for key in keys]


def _hold_out(
    strata: dict[str, list[Hashable]], seed: int, shares: dict[str, float]
) -> dict[Hashable, str]:
    """Say for every group that leaves train which split it goes to."""
    rng = numpy_rng(seed, "data", "split")
    owed = dict.fromkeys(shares, 0.5)
    held_out = {}
    for _, groups in sorted(strata.items()):
        waiting = [groups[i] for i in rng.permutation(len(groups))]
        for split, share in shares.items():
            owed[split] += share * len(groups)
            # At most one group more than its own share: a big stratum must not pay every debt.
            fair = min(int(owed[split]), int(share * len(groups)) + 1, len(waiting) - 1)
            held_out.update((waiting.pop(), split) for _ in range(fair))
            owed[split] = min(owed[split] - fair, 1.0)
    return held_out


def check_disjoint(splits: Splits, repeats: bool = False) -> None:
    """Raise a DataError where two splits share a prompt or a group, or one repeats a prompt.

    With `repeats` a prompt may come more than once in one split.
    """
    prompts: dict[str, str] = {}
    groups: dict[str, str] = {}
    faults = []
    for name in SPLITS:
        for example in getattr(splits, name):
            key = prompt_key(example.prompt)
            if key in prompts and not (repeats and prompts[key] == name):
                faults.append(f"prompt {example.prompt!r} is in {prompts[key]} and again in {name}")
            prompts[key] = name
            if example.group and groups.setdefault(example.group, name) != name:
                faults.append(
                    f"group {example.group!r} straddles {groups[example.group]} and {name}"
                )
    if faults:
        raise DataError(f"the splits overlap in {len(faults)} place(s): " + "; ".join(faults[:10]))
