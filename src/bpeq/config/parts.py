"""A part of a config: the name of a factory and its settings, read from TOML and checked.

A layer can also be written as a call, `"dense(128)"`. The arguments are literals. bpeq parses the
call and never executes it.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpeq.config import registry
from bpeq.config.schema import fields, fits_toml, layer_tables, validate, wires
from bpeq.settings import LayerTable, SettingError, phrase

_CALL = re.compile(r"\s*([A-Za-z_][\w.]*(?::[A-Za-z_]\w*)?)\s*(?:\((.*)\))?\s*", re.DOTALL)
_TOO_DEEP = "cannot be read as a call: nested too deeply"


@dataclass(frozen=True)
class Part:
    """A factory of the registry or of the user, with its settings.

    Args:
      kind: its table in the registry, such as "rules".
      name: its name, or a dotted path.
      settings: the checked settings with their defaults; settings without a value are absent. A
        layer inside a layer is a Part, several are a tuple of Parts, and a table of layers
        (hopfield's `skips`) is a dict of Parts.
      factory: the factory.
      place: its key in the config, such as "rule" or "network.layers.1".
    """

    kind: str
    name: str
    settings: Mapping[str, Any]
    factory: Callable[..., Any] = field(compare=False)
    place: str = field(compare=False)

    @property
    def key(self) -> str:
        """The key that holds the name, for error messages."""
        return self.place if self.kind == "layers" else f"{self.place}.name"

    @property
    def is_users_own(self) -> bool:
        """Whether the name is a dotted path to the user's own code."""
        return ":" in self.name

    def as_dict(self) -> dict[str, Any]:
        """Converts the part to a section of a TOML file.

        Returns:
          The name and the settings.
        """
        return {"name": self.name, **to_toml(self.settings)}

    def walk(self) -> Iterator[Part]:
        """Iterates over this part and all layers inside it.

        Returns:
          The parts.
        """
        yield self
        for value in self.settings.values():
            inner = list(value.values()) if isinstance(value, dict) else value
            for part in inner if isinstance(inner, list | tuple) else [inner]:
                if isinstance(part, Part):
                    yield from part.walk()


def read_part(
    kind: str, spec: Any, place: str, folder: Path | None = None, beside: Any = None
) -> Part:
    """Reads and checks one part, with all layers inside it.

    Args:
      kind: its table in the registry, such as "rules".
      spec: a table with `name` and settings, or, for a layer, a call such as "dense(128)".
      place: its key in the config.
      folder: where dotted paths are looked up; None: only where Python looks.
      beside: a NamedTuple of settings that the section has besides those of the factory; a setting
        that the factory has too is the factory's. None: no such settings.

    Returns:
      The part.

    Raises:
      SettingError: a setting is wrong. Its `setting` is the dotted key from `place` on.
    """
    if kind == "layers":
        spec = parse_layer(spec, place, folder)
    key = place if kind == "layers" else f"{place}.name"
    factory = resolve(kind, spec.get("name"), key, folder)
    tables = layer_tables(factory)
    inside = {*tables, *(wires(factory) if kind == "layers" else ())}
    plain = {k: v for k, v in spec.items() if k != "name" and k not in inside}
    own = fields(factory)
    more = [key for key in beside._fields if key not in own] if beside else []
    others = {key: plain.pop(key) for key in more if key in plain}
    # Tables of layers are read below; here they only count as given.
    read = {**plain, **{key: {} for key in tables if key in spec}}
    also = [*more, *(key for key in inside if key not in own)]
    also += [] if kind == "layers" else ["name"]  # a layer's name stands before its settings
    settings = validate(factory, read, place, beside=also)
    if beside:
        settings |= validate(beside, others, place)
    parameters = inspect.signature(factory).parameters
    for name in (name for name in spec if name in inside):
        inner, value = f"{place}.{name}", spec[name]
        if name in tables:
            if not isinstance(value, dict):
                raise SettingError("", inner, value, phrase(LayerTable))
            layers = {k: read_part("layers", x, f"{inner}.{k}", folder) for k, x in value.items()}
            settings[name] = layers
        elif parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            listed = enumerate(value if isinstance(value, list) else [value])
            several = (read_part("layers", each, f"{inner}.{i}", folder) for i, each in listed)
            settings[name] = tuple(several)
        elif isinstance(value, list):
            raise SettingError("", inner, value, "must be one layer, not a list of them")
        else:
            settings[name] = read_part("layers", value, inner, folder)
    return Part(kind, spec["name"], settings, factory, place)


def resolve(kind: str, name: Any, key: str, folder: Path | None) -> Callable[..., Any]:
    """Finds the factory of a kind by its name.

    Args:
      kind: the table in the registry.
      name: the name or the dotted path.
      key: the key of the name, for error messages.
      folder: where dotted paths are looked up; None: only where Python looks.

    Returns:
      The factory.

    Raises:
      SettingError: the name is missing or unknown.
    """
    if not isinstance(name, str):
        remedy = registry.choices(registry.KINDS[kind], "")
        raise SettingError("", key, name, remedy if name is not None else f"is missing; {remedy}")
    try:
        return registry.resolve(kind, name, folder)
    except ValueError as error:
        raise SettingError("", key, name, str(error)) from None


def parse_layer(spec: Any, place: str, folder: Path | None = None) -> dict[str, Any]:
    """Parses a layer: `conv(32, kernel=5)` becomes {"name": "conv", "features": 32, "kernel": 5}.

    The settings are not checked. A layer among the arguments, as in `residual(dense(8), relu)`,
    stays a text. A table {name = "dense", features = 8} is returned unchanged.

    Args:
      spec: the call or the table.
      place: its key in the config.
      folder: where dotted paths are looked up; None: only where Python looks.

    Returns:
      The name and the settings.

    Raises:
      SettingError: the text is not a call, the layer is unknown, an argument is not a literal, or
        there are too many arguments.
    """
    if isinstance(spec, dict) and isinstance(spec.get("name"), str):
        return spec
    try:
        return _parse(spec, folder)
    except ValueError as error:
        raise SettingError("", place, spec, str(error)) from None


def _parse(call: Any, folder: Path | None) -> dict[str, Any]:
    if isinstance(call, dict):
        raise ValueError('must have a name, as in {name = "dense", features = 128}')
    match = _CALL.fullmatch(call) if isinstance(call, str) else None
    if match is None:
        raise ValueError('must be a call such as "dense(128)"')
    name, arguments = match.group(1), match.group(2) or ""
    try:
        with warnings.catch_warnings(action="ignore"):  # Python warns of invalid escapes on stderr
            tree = ast.parse(f"f({arguments})", mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"cannot be read as a call: {error.args[0]}") from None
    except (MemoryError, RecursionError):
        raise ValueError(_TOO_DEEP) from None
    if not isinstance(tree, ast.Call):
        raise ValueError('must be one call such as "dense(128)"')
    factory = registry.resolve("layers", name, folder)
    layers = wires(factory)
    spec: dict[str, Any] = {"name": name}
    try:
        named = inspect.signature(factory).bind_partial(*tree.args).arguments
    except TypeError:
        raise ValueError(f"too many arguments without a name for {name}") from None
    for key, node in named.items():
        several = isinstance(node, tuple)
        values = [_argument(each, key in layers) for each in (node if several else [node])]
        spec[key] = values if several else values[0]
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise ValueError(f"the arguments of {name} are named one by one, not by **")
        if keyword.arg in spec:
            raise ValueError(f"the argument {keyword.arg} of {name} is given twice")
        spec[keyword.arg] = _argument(keyword.value, keyword.arg in layers)
    return spec


def _argument(node: ast.expr, layer: bool) -> Any:
    """The value of a literal, or the text of a layer."""
    try:
        text = ast.unparse(node)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if layer and isinstance(node, ast.Call | ast.Name):
        return text
    try:
        return _as_toml(ast.literal_eval(node))
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"{text} is not a literal that a config can hold") from None


def _as_toml(value: Any) -> Any:
    """Converts a literal to TOML types: a tuple becomes a list; None, bytes and sets are errors."""
    if not fits_toml(value):
        raise ValueError(value)
    if isinstance(value, list | tuple):
        return [_as_toml(part) for part in value]
    if isinstance(value, dict):
        return {key: _as_toml(part) for key, part in value.items()}
    return value


def to_toml(value: Any) -> Any:
    """Converts settings to TOML types.

    Args:
      value: a section, with parts inside it: a Part, a NamedTuple, a dict, or one value.

    Returns:
      The settings. Entries of a NamedTuple that are None, or an empty tuple, are absent.
    """
    if isinstance(value, Part):
        return value.as_dict()
    if hasattr(value, "_asdict"):
        return {k: to_toml(v) for k, v in value._asdict().items() if v not in (None, ())}
    if isinstance(value, tuple):
        return [to_toml(each) for each in value]
    return {k: to_toml(v) for k, v in value.items()} if isinstance(value, Mapping) else value
