"""A user's own parts of a config: where it names them, and what to say when their code fails."""

from __future__ import annotations

import inspect
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from bpeq.config import registry


class Part(NamedTuple):
    """A dotted path in a config: the key that it is the value of, and the files of its code."""

    key: str
    name: str
    files: frozenset[str]


def own_parts(tree: Any, folder: Path, place: str = "") -> list[Part]:
    """Every dotted path that stands for a name in a settled config."""
    found, steps = [], place.split(".")
    if isinstance(tree, dict) and ":" in str(tree.get("name", "")):
        section = len(steps) == 1 or steps[0] == "solvers"  # else one of several layers
        key = f"{place}.name" if section else place
        found.append(Part(key, tree["name"], _files(tree["name"], folder)))
    inner = dict(enumerate(tree)) if isinstance(tree, list) else tree
    for key, value in inner.items() if isinstance(inner, dict) else ():
        found += own_parts(value, folder, f"{place}.{key}".lstrip("."))
    return found


def blame(error: Exception, parts: list[Part], *sections: str) -> tuple[Part, str]:
    """The part that is at fault, and the error in one line.

    That is a part through whose files the error came, one of `sections` before others; or else the
    first of those.
    """
    order = sorted(parts, key=lambda part: [part.key.split(".")[0] != s for s in sections])
    places = traceback.extract_tb(error.__traceback__)
    seen = {place.filename for place in places}
    part = next((part for part in order if part.files & seen), order[0])
    ours = Path(places[-1].filename).is_relative_to(Path(__file__).parent)
    if ours and type(error) is ValueError:  # a check, worded for the user
        return part, str(error)
    return part, registry.told(error, frozenset().union(*(part.files for part in parts)))


def _files(name: str, folder: Path) -> frozenset[str]:
    """The module that is named, and the one that the factory comes from."""
    factory = inspect.unwrap(registry.resolve("", name, folder))
    module = sys.modules[name.partition(":")[0]]
    code = getattr(factory, "__code__", None)
    found = (getattr(module, "__file__", None), getattr(code, "co_filename", None))
    return frozenset(filter(None, found))
