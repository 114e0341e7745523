"""Pieces of the configuration, and the components that it names.

- `decorator`: `@section`, a frozen, self-validating, closed piece of the configuration
- `component`: `Component`, the base of everything a name can stand for; how one is written down
- `open`: `Open`, the mark of a field that takes built-in and foreign components
- `imports`: foreign code, found by its name where that is allowed, and its version
"""

from fedmoe.section.component import Component
from fedmoe.section.decorator import fields, section, tag
from fedmoe.section.imports import ANYWHERE, Imports
from fedmoe.section.open import Open

__all__ = ["ANYWHERE", "Component", "Imports", "Open", "fields", "section", "tag"]
