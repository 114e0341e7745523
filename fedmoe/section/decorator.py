"""The @section decorator: one frozen, self-validating, closed piece of the configuration."""

import dataclasses
import inspect
from typing import Any, ClassVar, TypeVar, cast, dataclass_transform, get_args, get_type_hints

import pydantic
import pydantic.dataclasses
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo

T = TypeVar("T")

SECTION = pydantic.ConfigDict(
    extra="forbid",
    # "8" is no integer and true is no 1; an integer still serves as a float.
    strict=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
)

REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, pydantic.Field)
)
def section(cls: type[T]) -> type[T]:
    """Return `cls` as a frozen, keyword-only dataclass that checks its values and refuses others.

    The docstring under a field becomes its help in the JSON schema. A built-in component carries
    `name: Literal["x"] = "x"`; one that extends it does not inherit that name, and goes by its
    module and class unless it has a `name` as well. A `ValueError` from `__post_init__` is the
    user's fault, and is reported at the section's path.

    Raises:
        pydantic.ValidationError: when an instance is made in Python with wrong values.

    Example:
        >>> @section
        ... class Tier:
        ...     top_k: int = 4
        >>> Tier(top_k=8).top_k
        8
    """
    own = inspect.get_annotations(cls)
    # `Component` has set a name that is no field where the class says none.
    renamed = "name" in vars(cls) and "name" not in own
    if renamed and any(tag(base) is not None for base in cls.__mro__[1:]):
        # A class variable of the same name takes the inherited field away.
        cls.__annotations__ = {**own, "name": ClassVar[str]}
    made = pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=SECTION)
    return cast(type[T], made)


def fields(section: type) -> dict[str, FieldInfo]:
    """Return the fields of a section class by name."""
    return vars(section)["__pydantic_fields__"]


def tag(section: type) -> str | None:
    """Return the name that a section class goes by in YAML, None for one without a name."""
    if "__pydantic_fields__" not in vars(section):
        return None
    name = fields(section).get("name")
    return get_args(name.annotation)[0] if name and get_args(name.annotation) else None


def arguments_of(thing: Any) -> type:
    """Return the section that checks the arguments of a class, from its annotated signature.

    A section is its own. What is no class, such as a function or an instance, takes none.
    """
    if not isinstance(thing, type):
        return section(type(_name_of(thing), (), {}))
    if is_pydantic_dataclass(thing):
        return thing
    hints = get_type_hints(thing.__init__, include_extras=True)
    parameters = [p for p in inspect.signature(thing).parameters.values() if p.kind not in REST]
    body = {
        "__annotations__": {p.name: hints.get(p.name, Any) for p in parameters},
        **{p.name: _default(p.default) for p in parameters if p.default is not p.empty},
    }
    config: pydantic.ConfigDict = {**SECTION, "arbitrary_types_allowed": True}
    made = type(thing.__name__, (), body)
    return pydantic.dataclasses.dataclass(made, kw_only=True, config=config)


def _default(value: Any) -> Any:
    return pydantic.Field(default_factory=lambda: value)


def _name_of(thing: Any) -> str:
    return getattr(thing, "__name__", type(thing).__name__)
