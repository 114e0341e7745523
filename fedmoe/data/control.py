"""Control tokens of a model, such as its end of turn, in the text of rows: there they are text."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from fedmoe.data.conversations import RowFault

MARK, OPEN, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
"""Characters that Unicode sets aside for a program's own use: no text has them."""


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that text does not contain, such as the end of a turn, with their ids."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {str(token): number for number, token in added.items() if token.special}


class Spelling:
    """A tokenizer for text in which marks show what only looks like control tokens.

    A mark stands inside each of those, so that a chat template, which knows nothing of it, renders
    text in which all other control tokens are the template's own. These are then written by other
    names, which a copy of the tokenizer knows in their place, and the marks are taken out.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.control = control_tokens(tokenizer)

    @cached_property
    def _names(self) -> str:
        return "|".join(map(re.escape, sorted(self.control, key=len, reverse=True))) or "(?!)"

    @cached_property
    def _beginning(self) -> re.Pattern[str]:
        return re.compile(f"(?={self._names}).", re.DOTALL)  # as they may overlap, no whole token

    def found(self, value: Any) -> str:
        """Return the first control token in a text, or in any of JSON values; else nothing."""
        return next((m[0] for text in _texts(value) if (m := re.search(self._names, text))), "")

    def marked(self, value: Any) -> Any:
        """Return a text, or JSON values, with a mark in each control token.

        Raises:
            RowFault: a control token is but one character, or the marks are in use.
        """
        if any({MARK, OPEN, CLOSE} & {*text} for text in _texts(value)):
            raise RowFault("its text has control tokens and one of U+FDD0 to U+FDD2, their marks")
        made = _each_text(value, lambda text: self._beginning.sub(lambda m: m[0] + MARK, text))
        if there := self.found(made):
            raise RowFault(f"its text has {there!r}, which cannot be told from the control token")
        return made

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text with marks, none of which is a marked control token's.

        Raises:
            RowFault: the tokenizer cannot tell the two apart.
        """
        named = re.sub(self._names, lambda m: f"{OPEN}{self.control[m[0]]}{CLOSE}", text)
        whole = self.tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0]
        ids, acting = self._of_named(named.replace(MARK, "")), re.findall(self._names, text)
        unknown = self._of_named(MARK)  # such as <unk>, also for other characters
        found = [n for n in ids if n in self.control.values() and n not in unknown]
        if self._of_named(named) != whole or found != [self.control[name] for name in acting]:
            raise RowFault(
                "the tokenizer takes what looks like its control tokens for such; set "
                "text.control_tokens: allow, or change the text"
            )
        return ids

    @cached_property
    def _copy(self) -> tuple[Any, dict[int, int]]:
        """Return a copy of the tokenizer with other names of its control tokens, and their ids."""
        from tokenizers import AddedToken, Tokenizer

        if (fast := getattr(self.tokenizer, "backend_tokenizer", None)) is None:
            raise RowFault(
                "only a fast tokenizer can take control tokens in text for text; set "
                "text.control_tokens: allow, or change the text"
            )
        copy: Any = Tokenizer.from_str(fast.to_str())
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = True
        tokens = self.tokenizer.added_tokens_decoder
        names = {f"{OPEN}{n}{CLOSE}": tokens[n] for n in self.control.values()}
        copy.add_tokens(
            [
                AddedToken(name, normalized=False, lstrip=old.lstrip, rstrip=old.rstrip)
                for name, old in names.items()
            ]
        )
        return copy, {copy.token_to_id(name): int(name[1:-1]) for name in names}

    def _of_named(self, named: str) -> list[int]:
        copy, numbers = self._copy
        ids: list[int] = copy.encode(named, add_special_tokens=False).ids
        return [numbers.get(n, n) for n in ids]


def unmarked(value: Any) -> Any:
    """Return a text, or JSON values, without marks."""
    return _each_text(value, lambda text: text.replace(MARK, ""))


def _texts(value: Any) -> list[str]:
    found: list[str] = []
    _each_text(value, lambda text: found.append(text) or text)
    return found


def _each_text(value: Any, change: Any) -> Any:
    """Return JSON values with every text in them changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [_each_text(one, change) for one in value]
    if isinstance(value, dict):
        return {change(name): _each_text(one, change) for name, one in value.items()}
    return value
