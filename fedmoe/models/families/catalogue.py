"""Facts about families that no model is built from: published sizes, and reasons for refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fedmoe.system.package_data import package_yaml

PACKAGE = "fedmoe.models.families"


@dataclass(frozen=True)
class Size:
    """A published model of a family, as the numbers of its config."""

    name: str
    config: Mapping[str, Any]
    """Settings that differ from transformers' defaults and change a count."""
    source: str
    """Address that publishes the numbers."""
    stated: str = ""
    """Parameters as its makers state them: total, and active per token where they do."""


@dataclass(frozen=True)
class Refused:
    """A family that cannot be trained here."""

    name: str
    reason: str
    model_type: str = ""
    """Empty where transformers has no class of it."""
    closest: str = ""
    """A `model_type` that is trained here and has nearly its shape."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Published models, as configs of the closest class."""
        return sizes_of(self.model_type or self.name.lower())


def sizes_of(model_type: str) -> tuple[Size, ...]:
    """Return the published models of a family.

    >>> [size.name for size in sizes_of("gpt_oss")]
    ['gpt-oss-20b', 'gpt-oss-120b']
    """
    return tuple(Size(**row) for row in _sizes().get(model_type, ()))


@cache
def refused_families() -> tuple[Refused, ...]:
    """Return every family that cannot be trained, in the order in which they are listed.

    >>> refused_families()[0].name
    'DeepSeek-V4'
    """
    return tuple(Refused(**row) for row in package_yaml(PACKAGE, "refused.yaml"))


@cache
def _sizes() -> dict[str, list[dict[str, Any]]]:
    return package_yaml(PACKAGE, "sizes.yaml")
