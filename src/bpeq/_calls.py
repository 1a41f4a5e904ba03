"""Layers as a config writes them: calls with literal arguments, parsed and never executed."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from typing import Any

from bpeq._schema import Fault, settle, wires

Spec = dict[str, Any]
Lookup = Callable[[str], Callable[..., Any]]
_CALL = re.compile(r"\s*([A-Za-z_][\w.]*(?::[A-Za-z_]\w*)?)\s*(?:\((.*)\))?\s*", re.DOTALL)


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
        tree = ast.parse(f"f({arguments})", mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"cannot be read as a call: {error.args[0]}") from None
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
        if keyword.arg is None or keyword.arg in spec:
            raise ValueError(
                f"the argument {keyword.arg or '**'} of {name} is given twice or unnamed"
            )
        spec[keyword.arg] = _argument(keyword.value, lookup)
    return spec


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
    """The layer of a settled spec, nested layers first."""
    factory = lookup(spec["name"])
    several: list[Any] = []
    arguments: dict[str, Any] = {}
    for key, value in spec.items():
        if key == "name":
            continue
        if key not in wires(factory):
            arguments[key] = value
        elif isinstance(value, list):
            several = [build_layer(part, lookup) for part in value]
        else:
            arguments[key] = build_layer(value, lookup)
    return factory(*several, **arguments)


def _inner(value: Any, lookup: Lookup) -> Any:
    if isinstance(value, list):
        return [parse_layer(part, lookup) for part in value]
    return parse_layer(value, lookup)


def _argument(node: ast.expr, lookup: Lookup) -> Any:
    if isinstance(node, ast.Call | ast.Name):
        return parse_layer(ast.unparse(node), lookup)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is not a literal") from None
