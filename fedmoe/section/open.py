"""The mark of a field that takes components: built-in ones by name, foreign ones by import."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import (
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fedmoe.errors import not_one_of
from fedmoe.section.component import PROGRAM, nowhere, reference, state
from fedmoe.section.decorator import arguments_of, tag
from fedmoe.section.imports import ANYWHERE, Imports, Refused, names_of

FROM = "from"
"""Key beside `name`: the version of a foreign component's code, or that it exists in memory alone.
A keyword of Python, so that it is no field of anybody's."""
MEMORY = "memory"


@dataclass(frozen=True)
class Open:
    """Marks a field of components: `Annotated[Strategy, Open("fedmoe.strategies", Strategy, ...)]`.

    Such a field takes an instance of the base class; a built-in name; `package.module:Name`; or the
    name of an entry point in the group, by which an installed package offers its own. With fields
    of the component, a mapping of them and the `name`.
    """

    group: str
    """The group of entry points."""
    base: Any
    """The class that all components of the field derive from; `Callable` for functions."""
    members: tuple[type, ...] = ()
    """The built-in ones, sections with a name each."""
    server_only: bool | Callable[[Any], bool] = False
    """Whether clients need none of it, always or by the configuration: then they are told the
    field's default."""
    several: bool = False
    """True if the field takes a list of them, too."""

    def of_server(self, config: Any) -> bool:
        """Return whether clients of a configuration need none of it."""
        return self.server_only(config) if callable(self.server_only) else self.server_only

    @property
    def names(self) -> dict[str, type]:
        """The built-in components by name."""
        return {str(tag(member)): member for member in self.members}

    def find(self, name: Any, imports: Imports = ANYWHERE) -> Any:
        """Return the class of a name, or a foreign function or instance.

        Raises:
            Refused: there is none, it may not be imported, or it is of another kind.
        """
        if name in self.names:
            return self.names[name]
        offered = names_of(self.group)
        if not isinstance(name, str) or (":" not in name and name not in offered):
            known = [*self.names, *offered]
            said = not_one_of(name, known) if known else f"{name!r} is the name of nothing here"
            hint = "" if "did you mean" in said else "; own code is named as package.module:Name"
            raise Refused(said + hint)
        found = imports.find(self.group, name)
        fits = issubclass if isinstance(found, type) else isinstance
        if not fits(found, self.base):
            raise Refused(f"{name!r} is no {self.expected}")
        return found

    @property
    def expected(self) -> str:
        """Return the kind of object that the field takes, in words."""
        if isinstance(self.base, type) and self.base is not Callable:
            return f"{self.base.__module__}.{self.base.__qualname__}"
        return "function or object that can be called"

    def section(self, name: Any, imports: Imports = ANYWHERE) -> type | None:
        """Return the section that checks the fields of a name; None where there is no such name."""
        try:
            return arguments_of(self.find(name, imports))
        except (Refused, TypeError, NameError):
            return None

    def write(self, value: Any) -> Any:
        """Return a component as plain data, by which it is loaded again.

        Of one that no file can hold, the name is kept, and the reason.
        """
        if value is None:
            return None
        if isinstance(value, tuple):
            return [self.write(each) for each in value]
        written, why = state(value)
        name = tag(type(value)) if type(value) in self.members else reference(value)
        elsewhere = "" if type(value) in self.members else nowhere(value)
        if why := why or elsewhere.replace(PROGRAM, ""):
            return {"name": name, FROM: f"{MEMORY} ({why})"}
        return {"name": name, **{key: v for key, v in written.items() if key != "name"}}

    def read(self, value: Any, info: ValidationInfo) -> Any:
        """Return the component that a value of the field stands for.

        Raises:
            PydanticCustomError: `component`, at the name; `component_type`, for another value.
        """
        if self.several and isinstance(value, list | tuple) and value:
            return tuple(self._read_one(number, each, info) for number, each in enumerate(value))
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            return self._checked(value)
        if "name" not in value:
            raise PydanticCustomError("union_tag_not_found", "missing; expected a name")
        imports = info.context if isinstance(info.context, Imports) else ANYWHERE
        given = {key: each for key, each in value.items() if key not in ("name", FROM)}
        try:
            self._check_origin(str(value["name"]), value.get(FROM), imports)
            found = self.find(value["name"], imports)
        except Refused as error:
            raise PydanticCustomError("component", "{why}", {"why": str(error)}) from None
        return self._checked(_made(found, given, info))

    def _read_one(self, number: int, value: Any, info: ValidationInfo) -> Any:
        """Return a component of a list, whose place is part of the path of its faults."""
        try:
            return self.read(value, info)
        except ValidationError as error:
            found: list[Any] = [
                {"ctx": {}, **each, "loc": (number, *each["loc"])}
                for each in error.errors(include_url=False)
            ]
            raise ValidationError.from_exception_data(error.title, found) from None

    def _checked(self, value: Any) -> Any:
        """Refuse what is no component, and foreign ones that pass for a built-in one."""
        if isinstance(value, type) or not isinstance(value, self.base):
            hint = ", not the class itself" if isinstance(value, type) else ""
            raise PydanticCustomError(
                "component_type",
                "expected a name, or an instance of {base}{hint}",
                {"base": self.expected, "hint": hint},
            )
        name = getattr(value, "name", None)
        if type(value) not in self.members and isinstance(name, str) and name in self.names:
            raise ValueError(
                f"{reference(value)} extends the built-in {name!r} and would be reported under its "
                "name; put @section above its class"
            )
        return value

    def _check_origin(self, name: str, origin: Any, imports: Imports) -> None:
        """Refuse a component of other code than the file says."""
        if origin is None:
            return
        if str(origin).startswith(MEMORY):
            raise Refused(
                f"{name!r} was an object of the program that wrote this file, which no file can "
                f"hold: {str(origin)[len(MEMORY) :].strip(' ()')}; give the object in Python again"
            )
        imports.check_version(self.group, name, str(origin))

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        choices = {name: handler.generate_schema(kind) for name, kind in self.names.items()}
        known = core_schema.tagged_union_schema(choices, "name") if choices else None
        return core_schema.with_info_wrap_validator_function(
            lambda value, _, info: self.read(value, info),
            known or core_schema.any_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(self.write),
        )

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        known = handler(core)
        names = [{"pattern": ":"}, *({"const": name} for name in names_of(self.group))]
        foreign = {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string", "anyOf": names}},
        }
        said = f"A built-in name, package.module:Name, or an entry point of {self.group}."
        members = known.get("anyOf", known.get("oneOf", [known] if "$ref" in known else []))
        one = [*members, {"type": "string", "description": said}, foreign]
        many = [{"type": "array", "items": {"anyOf": one}, "minItems": 1}] if self.several else []
        return {"anyOf": one + many}


def _made(found: Any, given: dict[str, Any], info: ValidationInfo) -> Any:
    """The component of a class, with the fields that were given."""
    checks: Any = arguments_of(found)
    if info.mode == "json":
        # Strict JSON, unlike strict Python, takes a list for a tuple and text for a path.
        made = TypeAdapter(checks).validate_json(json.dumps(given), context=info.context)
    else:
        made = checks(**given)
    if checks is found:
        return made
    if not isinstance(found, type):
        return found
    try:
        return found(**{key: getattr(made, key) for key in given})
    except TypeError as error:
        raise ValueError(f"{reference(found)} cannot be made: {error}") from error
