"""The @section decorator: one frozen, self-validating, closed piece of the configuration."""

import dataclasses
from typing import TypeVar, cast, dataclass_transform

import pydantic
import pydantic.dataclasses

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
