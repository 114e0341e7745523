"""YAML text to plain dicts, lists and scalars by YAML 1.2's rules, and back."""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from fedmoe.errors import ConfigError, Fault
from fedmoe.system.json_text import unwritable

# YAML 1.2's core schema. PyYAML 6 follows 1.1, where `no` is false, 1e-4 is text, 1:30 is 90 and
# 010 is 8. The first match wins, so integers come before floats.
CORE = [
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)\Z")),
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
    ("tag:yaml.org,2002:int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
    ),
    ("tag:yaml.org,2002:str", re.compile(r"(?s:.*)\Z")),
]


class _Loader(yaml.SafeLoader):
    """Reads plain scalars by the core schema; only used to compose nodes, never objects."""

    yaml_implicit_resolvers: ClassVar = {None: CORE}


class _Dumper(yaml.SafeDumper):
    """Quotes any text that either YAML 1.1 or the core schema would read as something else."""

    yaml_implicit_resolvers: ClassVar = yaml.SafeDumper.yaml_implicit_resolvers | {None: CORE}

    def represent_scalar(self, tag: str, value: str, style: str | None = None) -> yaml.ScalarNode:
        # PyYAML 6 leaves these line breaks as they are in single quotes, and reads them as spaces.
        quoted = '"' if re.search("[\x85\u2028\u2029]", value) else style
        return super().represent_scalar(tag, value, quoted)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Return the mapping in a YAML file; a file of comments alone is an empty mapping.

    Raises:
        ConfigError: no readable file, not UTF-8, broken YAML, a key set twice, or no mapping.
    """
    where = str(path)
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(where, [Fault("", "no such file")]) from None
    except IsADirectoryError:
        raise ConfigError(where, [Fault("", "a directory; expected a YAML file")]) from None
    except OSError as error:
        raise ConfigError(where, [Fault("", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(where, [Fault(f"line {line}", "not UTF-8 text")]) from None
    tree = parse(text, where)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        found = "a list" if isinstance(tree, list) else f"{tree!r}"
        raise ConfigError(where, [Fault("", f"found {found}, expected a mapping (key: value)")])
    return tree


def parse(text: str, where: str) -> Any:
    """Return the one YAML document in `text`; keys of mappings stay as written, as text.

    Raises:
        ConfigError: broken YAML, with line and column, or every key that is set twice.
    """
    faults: list[Fault] = []
    try:
        node = yaml.compose(text, Loader=_Loader)
        tree = None if node is None else _plain(node, faults)
    except yaml.MarkedYAMLError as error:
        place = _line_and_column(error.problem_mark or error.context_mark)
        raise ConfigError(where, [Fault(place, f"broken YAML: {error.problem}")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(where, [Fault(f"line {line}", f"broken YAML: {error.reason}")]) from None
    except RecursionError:
        raise ConfigError(where, [Fault("", "nested too deeply, or inside itself")]) from None
    if faults:
        raise ConfigError(where, faults)
    return tree


def dump(tree: Any) -> str:
    """Return `tree` as block-style YAML that `parse` reads back unchanged."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def _plain(node: yaml.Node, faults: list[Fault]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, faults)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, faults) for item in node.value]
    assert isinstance(node, yaml.ScalarNode), node
    try:
        return _scalar(node)
    except ValueError as error:
        faults.append(Fault(_line_and_column(node.start_mark), str(error)))
        return None


def _mapping(node: yaml.MappingNode, faults: list[Fault]) -> dict[str, Any]:
    out, lines = {}, {}
    for key, value in node.value:
        here = _line_and_column(key.start_mark)
        if not isinstance(key, yaml.ScalarNode):
            faults.append(Fault(here, "a key must be a word or a number"))
        elif odd := unwritable(key.value):
            faults.append(Fault(here, odd))
        elif key.value in out:
            first = lines[key.value]
            faults.append(Fault(here, f"{key.value!r} is set twice; first on line {first}"))
        else:
            lines[key.value] = key.start_mark.line + 1
            out[key.value] = _plain(value, faults)
    return out


def _scalar(node: yaml.ScalarNode) -> bool | int | float | str | None:
    text, kind = node.value, node.tag.removeprefix("tag:yaml.org,2002:")
    # Only an explicit tag such as `!!bool yes` or `!Thing x` can fail here.
    if not any(tag == node.tag and pattern.match(text) for tag, pattern in CORE):
        raise ValueError(f"{text!r} cannot be read as {node.tag!r}")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if kind == "float":
        return float(re.sub(r"\.(?=[in])", "", text.lower()))
    if odd := unwritable(text):
        raise ValueError(odd)
    return text


def _line_and_column(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
