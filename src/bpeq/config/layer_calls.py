"""Layers as a config writes them: calls with literal arguments, parsed and never executed."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bpeq.config.registry import choices, resolve
from bpeq.config.schema import Fault, settle, wires
from bpeq.settings import Count
from bpeq.types import Layer


class Inputs(NamedTuple):
    """[networks.NAME]: beside `layers`, what one of several networks reads.

    input: the shape of one example. tokens: its entries are whole numbers below this; else numbers.
    """

    input: list[Count]
    tokens: Count | None = None


Spec = dict[str, Any]
Lookup = Callable[[str], Callable[..., Any]]
K = TypeVar("K")
_CALL = re.compile(r"\s*([A-Za-z_][\w.]*(?::[A-Za-z_]\w*)?)\s*(?:\((.*)\))?\s*", re.DOTALL)
_TOO_DEEP = "cannot be read as a call: nested too deeply"


def parse_layer(given: Any, lookup: Lookup) -> Spec:
    """`conv(32, kernel=5)` as {"name": "conv", "features": 32, "kernel": 5}, settings unchecked.

    Layers among the arguments, as in `residual(dense(8), relu)`, become specs of their own. A
    dotted path may stand in place of the name. Arguments are literals: nothing is executed. A table
    {name = "dense", features = 8} is taken as it is.

    Raises:
      ValueError: not a call, an unknown layer, an argument that is no literal, or too many of them.
    """
    if isinstance(given, dict):
        if not isinstance(given.get("name"), str):
            raise ValueError('must have a name, as in {name = "dense", features = 128}')
        nested = wires(lookup(given["name"]))
        return {k: _inner(v, lookup) if k in nested else v for k, v in given.items()}
    match = _CALL.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        raise ValueError('must be a call such as "dense(128)"')
    name, arguments = match.group(1), match.group(2) or ""
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes, on stderr
            tree = ast.parse(f"f({arguments})", mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"cannot be read as a call: {error.args[0]}") from None
    except (MemoryError, RecursionError):
        raise ValueError(_TOO_DEEP) from None
    if not isinstance(tree, ast.Call):
        raise ValueError('must be one call such as "dense(128)"')
    spec: Spec = {"name": name}
    parameters = list(inspect.signature(lookup(name)).parameters.values())
    for node in tree.args:
        if parameters and parameters[0].kind == inspect.Parameter.VAR_POSITIONAL:
            spec.setdefault(parameters[0].name, []).append(_argument(node, lookup))
        elif parameters and parameters[0].kind == inspect.Parameter.POSITIONAL_OR_KEYWORD:
            spec[parameters.pop(0).name] = _argument(node, lookup)
        else:
            raise ValueError(f"too many arguments without a name for {name}")
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise ValueError(f"the arguments of {name} are named one by one, not by **")
        if keyword.arg in spec:
            raise ValueError(f"the argument {keyword.arg} of {name} is given twice")
        spec[keyword.arg] = _argument(keyword.value, lookup)
    return spec


def each_network(tree: dict[str, Any], change: Callable[..., Spec], folder: Path) -> Spec:
    """The tree with [network] and every [networks.NAME] as `change(network, folder, place)`."""
    done = dict(tree)
    if "network" in tree:
        done["network"] = change(tree["network"], folder, "network")
    if "networks" in tree:
        done["networks"] = {}
        for name, network in tree["networks"].items():
            if not isinstance(network, dict):
                raise Fault(f"networks.{name}", network, "must be a section")
            done["networks"][name] = change(network, folder, f"networks.{name}")
    return done


def parse_network(network: Spec, folder: Path, place: str = "network") -> Spec:
    """A section with layers, its calls parsed, so that an override can reach inside one."""
    layers = network.get("layers")
    if not isinstance(layers, list) or not layers:
        raise Fault(f"{place}.layers", layers, 'must be a list of layers such as ["dense(128)"]')
    lookup = partial(resolve, "layers", folder=folder)
    parsed = parse_each(f"{place}.layers", dict(enumerate(layers)), lookup)
    return {**network, "layers": list(parsed.values())}


def settle_network(network: Spec, folder: Path, place: str = "network") -> Spec:
    """A section with layers, every layer's settings checked and completed.

    [network] has nothing beside its layers; one of several says what `Inputs` says too.
    """
    layers = parse_network(network, folder, place)["layers"]  # an override may have put a call back
    beside = {key: value for key, value in network.items() if key != "layers"}
    if place != "network":
        try:
            beside = {k: v for k, v in settle(Inputs, beside).items() if v is not None}
        except Fault as fault:
            raise Fault(f"{place}.{fault.key}", fault.value, fault.remedy) from None
    for key in beside if place == "network" else ():
        raise Fault(f"network.{key}", network[key], f"unknown key; {choices(['layers'], key)}")
    lookup = partial(resolve, "layers", folder=folder)
    settled = settle_each(f"{place}.layers", dict(enumerate(layers)), lookup)
    return {"layers": list(settled.values()), **beside}


def parse_each(place: str, calls: Mapping[K, Any], lookup: Lookup) -> dict[K, Spec]:
    """Several layers' calls parsed, each under its key.

    Raises:
      Fault: one cannot be; its key is `place.KEY`.
    """
    parsed = {}
    for key, given in calls.items():
        try:
            parsed[key] = parse_layer(given, lookup)
        except ValueError as error:
            raise Fault(f"{place}.{key}", given, str(error)) from None
    return parsed


def settle_each(place: str, calls: Mapping[K, Any], lookup: Lookup) -> dict[K, Spec]:
    """Several layers' calls parsed, their settings checked and completed, each under its key.

    Raises:
      Fault: a call cannot be parsed or a setting is wrong; its key is the path below `place`.
    """
    settled = {}
    for key, spec in parse_each(place, calls, lookup).items():
        try:
            settled[key] = settle_layer(spec, lookup)
        except Fault as fault:
            raise Fault(f"{place}.{key}.{fault.key}", fault.value, fault.remedy) from None
    return settled


def settle_layer(spec: Spec, lookup: Lookup) -> Spec:
    """A spec with its settings checked and the defaults filled in, nested layers too.

    Raises:
      Fault: a setting is wrong; its key is the path inside the spec.
    """
    factory = lookup(spec["name"])
    nested = {name: spec[name] for name in wires(factory) if name in spec}
    own = {k: v for k, v in spec.items() if k != "name" and k not in nested}
    settled = {k: v for k, v in settle(factory, own).items() if v is not None}
    for key, inner in nested.items():
        parts = inner if isinstance(inner, list) else [inner]
        done = []
        for i, part in enumerate(parts):
            try:
                done.append(settle_layer(part, lookup))
            except Fault as fault:
                place = f"{key}.{i}" if isinstance(inner, list) else key
                raise Fault(f"{place}.{fault.key}", fault.value, fault.remedy) from None
        settled[key] = done if isinstance(inner, list) else done[0]
    return {"name": spec["name"], **settled}


def build_layer(spec: Spec, lookup: Lookup) -> Any:
    """The layer of a settled spec, nested layers first.

    Raises:
      ValueError: an argument is refused or missing, or what the factory gives is no layer.
    """
    factory = lookup(spec["name"])
    parameters = inspect.signature(factory).parameters
    several: list[Any] = []
    arguments: dict[str, Any] = {}
    for key, value in spec.items():
        if key == "name":
            continue
        if key not in wires(factory):
            arguments[key] = value
        elif parameters[key].kind == inspect.Parameter.VAR_POSITIONAL:
            inner = value if isinstance(value, list) else [value]
            several = [build_layer(part, lookup) for part in inner]
        elif isinstance(value, list):
            raise ValueError(f"{spec['name']}: {key} is one layer, not a list of them")
        else:
            arguments[key] = build_layer(value, lookup)
    try:
        inspect.signature(factory).bind(*several, **arguments)
    except TypeError as error:
        raise ValueError(f"{spec['name']}: {error}") from None
    layer = factory(*several, **arguments)
    if not isinstance(layer, Layer):
        raise ValueError(f"{spec['name']} gives a {type(layer).__name__}, not a Layer")
    return layer


def _inner(value: Any, lookup: Lookup) -> Any:
    if isinstance(value, list):
        return [parse_layer(part, lookup) for part in value]
    return parse_layer(value, lookup)


def _argument(node: ast.expr, lookup: Lookup) -> Any:
    try:
        text = ast.unparse(node)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if isinstance(node, ast.Call | ast.Name):
        return parse_layer(text, lookup)
    try:
        return _written(ast.literal_eval(node))
    except (ValueError, TypeError):
        raise ValueError(f"{text} is not a literal that a config can hold") from None


def _written(value: Any) -> Any:
    """A literal as TOML has it: tuples are lists there; None, bytes and sets do not exist."""
    if isinstance(value, list | tuple):
        return [_written(part) for part in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _written(part) for key, part in value.items()}
    if not isinstance(value, bool | int | float | str):
        raise ValueError(value)
    return value
