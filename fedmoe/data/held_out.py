"""Why a split has no examples, and what to set so that it has some."""

import math
from collections.abc import Sequence

from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import SPLITS, Splits, prompt_key
from fedmoe.errors import DataError


def check_held_out(dataset: Dataset, splits: Splits, needed: Sequence[str] = SPLITS) -> None:
    """Raise a DataError where a needed split is empty, which says why and what to do.

    Example:
        >>> from fedmoe.data import Memory
        >>> rows = Memory(rows=[(f"say {n}", str(n)) for n in range(4)])
        >>> check_held_out(rows, rows.load(seed=0))
        Traceback (most recent call last):
        fedmoe.errors.DataError: there are no validation examples: data.validation_share = 0.1 of \
4 different prompts is less than one; set it to 0.25 or more, or give more rows
    """
    faults = [_why(dataset, splits, name) for name in needed if not getattr(splits, name)]
    if faults:
        lost = f" ({loss})" if (loss := splits.rows.loss()) else ""
        raise DataError("\n".join(f"there are no {fault}{lost}" for fault in faults))


def _why(dataset: Dataset, splits: Splits, name: str) -> str:
    setting, head = f"data.{name}_share", f"{name} examples: "
    share = getattr(dataset, f"{name}_share", None)
    if share is None:
        return f"{head}the dataset {dataset.name!r} loads none; correct its `load`"
    if share == 0:
        return f"{head}{setting} is 0; set it to 0.1, for example"
    every = [example for split in SPLITS for example in getattr(splits, split)]
    num_prompts = len({example.group or prompt_key(example.prompt) for example in every})
    if num_prompts < len(SPLITS):
        why = f"{num_prompts} different prompt(s) cannot be trained on, validated and tested with"
        return f"{head}{why}; give more rows"
    if share * num_prompts < 0.5:
        enough = math.ceil(100 / num_prompts) / 100
        why = f"{setting} = {share:g} of {num_prompts} different prompts is less than one"
        return f"{head}{why}; set it to {enough:g} or more, or give more rows"
    return (
        f"{head}each of {len({example.label for example in every})} label(s) keeps a prompt to "
        f"train on, and of {num_prompts} different prompts none is left; give more rows, or lower "
        "the shares of the other splits"
    )
