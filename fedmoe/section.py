"""Pieces of the configuration: frozen, self-validating, closed; and what each objects to."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, cast, dataclass_transform

import pydantic
import pydantic.dataclasses

from fedmoe.errors import Fault

T = TypeVar("T")

SECTION = pydantic.ConfigDict(
    extra="forbid",
    # "8" is no integer and true is no 1; an integer still serves as a float.
    strict=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, pydantic.Field)
)
def section(cls: type[T]) -> type[T]:
    """Return `cls` as a frozen, keyword-only dataclass that checks its values and refuses others.

    The docstring under a field becomes its help in the JSON schema. A member of a union carries
    `name: Literal["x"] = "x"`, and the field that holds the union is annotated with
    `Field(discriminator="name")`. A `ValueError` from `__post_init__` is the user's fault, and is
    reported at the section's path.

    Raises:
        pydantic.ValidationError: when an instance is made in Python with wrong values.
    """
    made = pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=SECTION)
    return cast(type[T], made)


class Component:
    """A part of an experiment that can be exchanged: a strategy, a gating, a budget, ...

    Each part knows itself what it cannot work with, so that no other file has to name it.
    """

    def faults(self, experiment: Any, model: Any = None) -> Iterable[Fault]:
        """Return what of an experiment this part cannot honour; nothing unless it is overridden.

        Called when settings are loaded, and again when the model is there, before any training.
        All faults of all parts are reported together.

        Args:
            experiment: the `Experiment`, of which this is a part; ask its other parts for traits
                (`experiment.gating.exact_counts`), never for their names.
            model: the `AdaptedModel`; None while only settings are known.

        Returns:
            Faults whose path starts at the experiment (`rescaling.by`), each with a likely fix.
        """
        return ()
