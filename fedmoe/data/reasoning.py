"""Short reasoning tasks made by `reasoning-gym`, each answer checked by the task's own verifier."""

import json
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import Example, Share, Splits, drop_repeats, prompt_key
from fedmoe.errors import DataError
from fedmoe.section import section
from fedmoe.seeds import derive
from fedmoe.system.extras import require

TASKS = (
    "calendar_arithmetic",
    "chain_sum",
    "family_relationships",
    "leg_counting",
    "letter_counting",
    "simple_equations",
    "spell_backward",
    "syllogism",
)
"""Prompts under 300 characters and answers under 40 in reasoning-gym 0.1.25, quick to make."""


@section
class ReasoningGym(Dataset):
    """Puzzles drawn from a seed: sums, counting, spelling, family trees; the label is the task.

    Source: the package `reasoning-gym` (Apache-2.0).
    """

    name: Literal["reasoning_gym"] = "reasoning_gym"
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = TASKS
    """Names of the package's datasets."""
    per_task: Annotated[int, Field(ge=1)] = 1000
    """Examples of each task, all splits together; a task that repeats itself gives fewer."""
    test_share: Share = 0.15
    """Share of the examples that are for testing."""
    validation_share: Share = 0.1
    """Share of the examples that are for validation."""
    plain: ClassVar[bool] = True

    def load(self, seed: int) -> Splits:
        """Return the splits, each drawn with its own item seeds; no prompt is in two of them.

        Raises:
            DataError: a task the package does not have.
            FedMoEError: the package is not installed.
        """
        require("data.name 'reasoning_gym'", "reasoning", "reasoning_gym")
        _check_tasks(self.tasks)
        num_test = round(self.per_task * self.test_share)
        num_validation = round(self.per_task * self.validation_share)
        num_train = self.per_task - num_test - num_validation
        sizes = {"train": num_train, "validation": num_validation, "test": num_test}
        drawn: dict[str, list[Example]] = {name: [] for name in sizes}
        for task in self.tasks:
            seen: set[str] = set()
            for name, size in sizes.items():
                drawn[name].extend(
                    _draw(task, size, derive(seed, "reasoning_gym", task, name), seen)
                )
        train, validation, test = (tuple(rows) for rows in drawn.values())
        return drop_repeats(Splits(train, validation, test))

    def score(self, example: Example, answer: str) -> float:
        """Return the verifier's score from 0 to 1; some tasks give part marks for the form."""
        import reasoning_gym

        # reasoning-gym 0.1.25 annotates the verifier as taking no arguments; it takes these two.
        verify: Any = reasoning_gym.get_score_answer_fn(example.label)
        return float(verify(answer.strip(), json.loads(example.extra)))


def _draw(task: str, size: int, seed: int, seen: set[str]) -> Iterator[Example]:
    """Yield up to `size` examples whose prompts are not in `seen`, and add them to it."""
    import reasoning_gym

    # The package numbers items from its seed upwards; draw spares for the prompts we have seen.
    items = reasoning_gym.create_dataset(task, seed=seed % 2**31, size=3 * max(size, 1))
    left = size
    for item in items:
        if left == 0:
            return
        prompt = item["question"].strip()
        if (key := prompt_key(prompt)) not in seen:
            seen.add(key)
            left -= 1
            yield Example(prompt, item["answer"], task, extra=json.dumps(item))


def _check_tasks(tasks: tuple[str, ...]) -> None:
    from reasoning_gym.factory import DATASETS

    # "composite" mixes other tasks and makes nothing by itself.
    known = sorted(set(DATASETS) - {"composite"})
    faults = []
    for task in tasks:
        if task not in known:
            near = get_close_matches(task, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            faults.append(f"{task!r} is not a task of reasoning-gym{hint}")
    if faults:
        raise DataError("\n".join(f"reasoning_gym.tasks: {fault}" for fault in faults))
