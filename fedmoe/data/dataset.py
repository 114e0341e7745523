"""The base of datasets: what `data` in a configuration may name."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from fedmoe.data.examples import Example, Splits, exact_match
from fedmoe.data.text import TextSettings
from fedmoe.section import Component


class Dataset(Component):
    """Examples with their splits, and a score for a model's answer.

    Example:
        >>> class Sums(Dataset):
        ...     def load(self, seed: int) -> Splits:
        ...         rows = [Example(f"{n} + 1 =", str(n + 1), "sums") for n in range(30)]
        ...         return Splits(tuple(rows[:20]), tuple(rows[20:25]), tuple(rows[25:]))
        >>> Sums().load(0).test[0].prompt
        '25 + 1 ='
    """

    repeats: ClassVar[bool] = False
    """True if a prompt may come more than once in a split, such as with other responses."""

    plain: ClassVar[bool] = False
    """True if its rows are plain prompts and responses, which no chat template words by itself."""

    def wording(self, text: TextSettings) -> TextSettings:
        """Return the settings by which its rows are worded.

        Example:
            >>> class Sums(Dataset):
            ...     plain = True
            >>> Sums().wording(TextSettings()).template
            'plain'
        """
        return replace(text, template="plain") if self.plain and text.template == "auto" else text

    def load(self, seed: int) -> Splits:
        """Return the splits, of which no two share a prompt; the same seed gives the same ones.

        Raises:
            DataError: the examples cannot be read.
        """
        raise NotImplementedError

    def score(self, example: Example, answer: str) -> float:
        """Return how right an answer is, from 0 to 1: here 1 for the response but for spacing."""
        return exact_match(example, answer)
