"""A digest of installed code, by which two machines find out whether they run the same."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from fedmoe.system.files import expanded
from fedmoe.system.shipped import BUNDLE

IGNORED = {"__pycache__", BUNDLE}
"""A wheel brings copies of `clients/` and more; a checkout of the same code has none of them."""


def files_digest(*paths: Path) -> str:
    """Hash the bytes of files, in this order.

    Raises:
        OSError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def template_digest(setting: str) -> str:
    """Return a digest of the file that `text.template` names, `missing` without one; or its word.

    >>> template_digest("auto"), template_digest("nowhere.jinja")
    ('auto', 'missing')
    """
    if not setting.endswith((".jinja", ".jinja2")):
        return setting
    path = expanded(setting)
    return files_digest(path) if path.is_file() else "missing"


def code_digest(*folders: Path) -> str:
    """Hash every file of this package, built-in weights included, and of `folders`.

    Only the files' bytes and their names within each folder count, not where the folders are. The
    package is read once per process: what is changed on disk later is not what runs here.
    """
    digest = _of_package().copy()
    for folder in folders:
        _add(digest, folder)
    return digest.hexdigest()[:16]


@cache
def _of_package() -> Any:
    digest = hashlib.sha256()
    _add(digest, Path(__file__).parents[1])
    return digest


def _add(digest: Any, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not IGNORED & {*inside.parts}:
            digest.update(inside.as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
