"""Components: the objects that a configuration names, and how one is written down."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import is_pydantic_dataclass
from pydantic_core import PydanticSerializationError, to_jsonable_python

if TYPE_CHECKING:
    from fedmoe.errors import Fault


class Component:
    """Base of strategies, datasets, budgets and all else that a configuration chooses by name.

    One from outside is a subclass: a `@section` where its fields are to be checked as a built-in
    one's are, or any class whose `__init__` keeps each argument as an attribute of the same name.

    Example:
        >>> class Shout(Component):
        ...     def __init__(self, words: int = 1):
        ...         self.words = words
        >>> Shout(2) == Shout(2), Shout(2) == Shout(3)
        (True, False)
    """

    name: Any
    """The word by which YAML and reports know it; `package.module:Name` where it sets none."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "name" not in vars(cls):
            cls.name = reference(cls)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def faults(self, experiment: Any, model: Any = None) -> Iterable[Fault]:
        """Return what of an experiment this part cannot honour; nothing unless it is overridden.

        Called when settings are loaded, and again when the model is there, before any training.
        All faults of all parts are reported together.

        Args:
            experiment: the `Experiment` of which this is a part. Ask its other parts for traits
                (`experiment.gating.exact_counts`), never for their names.
            model: the `AdaptedModel`; None while only settings are known.

        Returns:
            Faults whose path starts at the experiment (`rescaling.by`), each with a likely fix.

        Example:
            >>> class Plain(Component):
            ...     def faults(self, experiment, model=None):
            ...         if experiment.upload.error_feedback:
            ...             yield Fault("upload.error_feedback", "is not for 'plain'; use false")
        """
        return ()

    def in_memory(self) -> str:
        """Return why no file can hold this object; empty where its fields say it all."""
        return ""


def reference(thing: Any) -> str:
    """Return the name under which a class, a function or an object's class is imported.

    Example:
        >>> reference(Component)
        'fedmoe.section.component:Component'
    """
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


PROGRAM = "it is defined in the program itself (`__main__`); move it to a module"


def nowhere(thing: Any) -> str:
    """Return why another process could not import `thing`, or its class; empty where it can."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    module, _, path = reference(named).partition(":")
    if "<" in path:
        return "it is defined inside a function; move it to the top of a module"
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is not named:
        return f"module {module!r} does not hold it under the name {path!r}"
    return PROGRAM if module == "__main__" else ""


def state(thing: Any) -> tuple[dict[str, Any], str]:
    """Return the fields of a component as plain data, and why they cannot be written down.

    The reason is empty where they can be, and there are no fields where they cannot.
    """
    if isinstance(thing, Component) and (why := thing.in_memory()):
        return {}, why
    if hasattr(thing, "__qualname__"):
        return {}, ""
    try:
        if is_pydantic_dataclass(type(thing)):
            return to_jsonable_python(thing), ""
        names = _arguments(thing)
        if lost := [name for name in names if not hasattr(thing, name)]:
            return {}, f"it has no attribute {lost[0]!r} for the argument of that name"
        values = {name: getattr(thing, name) for name in names}
        if not vars(thing).keys() <= values.keys() and type(thing)(**values) != thing:
            return {}, "it holds more than its arguments say"
        return to_jsonable_python(values), ""
    except PydanticSerializationError as error:
        return {}, f"a field is no plain data: {error}"


def _arguments(thing: Any) -> list[str]:
    if dataclasses.is_dataclass(thing):
        return [field.name for field in dataclasses.fields(thing) if field.init]
    parameters = inspect.signature(type(thing)).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
