"""Random sentences from hassil's expression trees, with the slots they fill."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hassil.expression import (
    Alternative,
    Expression,
    Group,
    ListReference,
    Permutation,
    RuleReference,
    TextChunk,
)

Choice = tuple[Expression, str]
"""A list value as it is said, and as it is written in the response."""


@dataclass
class Sampler:
    """A generator of single sentences; it never enumerates, since one line may mean millions."""

    rules: Mapping[str, Expression]
    """Meaning of each `<rule>`."""
    choices: Mapping[str, Sequence[Choice]]
    """Values of each `{list}`; `topic.list` is preferred when the sentence has that topic."""
    generator: random.Random
    topics: Sequence[str] = ()
    """Keep the values of one sentence together: a device domain, a kind of media."""
    slots: dict[str, str] = field(default_factory=dict)

    def sentence(self, expression: Expression, topics: Sequence[str]) -> tuple[str, dict[str, str]]:
        """Return one sentence and the slots it fills."""
        self.topics, self.slots = topics, {}
        return " ".join(self._say(expression).split()), self.slots

    def _say(self, expression: Expression) -> str:
        if isinstance(expression, TextChunk):
            return expression.original_text
        if isinstance(expression, Alternative):
            return self._say(self.generator.choice(expression.items))
        if isinstance(expression, Permutation):
            items = self.generator.sample(expression.items, len(expression.items))
            return "".join(map(self._say, items))
        if isinstance(expression, Group):
            return "".join(map(self._say, expression.items))
        if isinstance(expression, RuleReference):
            return self._say(self.rules[expression.rule_name])
        assert isinstance(expression, ListReference), expression
        return self._value(expression)

    def _value(self, reference: ListReference) -> str:
        spoken, written = self.generator.choice(self._choices_for(reference.list_name))
        self.slots[reference.slot_name] = written
        return self._say(spoken)

    def _choices_for(self, name: str) -> Sequence[Choice]:
        for topic in self.topics:
            if found := self.choices.get(f"{topic}.{name}"):
                return found
        return self.choices[name]
