"""What is laid over a config: `key=value` from the command line, and [rules.NAME] of each rule."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from bpeq import registry
from bpeq._schema import ConfigError, Fault, fields

Tree = dict[str, Any]


def choose_rule(
    tree: Tree, pairs: list[tuple[str, Any]], default: str, tables: tuple[str, ...], folder: Path
) -> Tree:
    """Merges the [rules.NAME] of the rule that runs into [rule] and the other sections."""
    for key, value in pairs:
        if key.startswith("rules."):
            put(tree, key, value)
    in_file = {"name": default, **tree.get("rule", {})}
    name = next((value for key, value in reversed(pairs) if key == "rule.name"), in_file["name"])
    for other, own in tree.get("rules", {}).items():
        factory = resolve("rules", other, f"rules.{other}", folder)
        if not isinstance(own, dict):
            raise Fault(f"rules.{other}", own, "must be a section")
        for key in own:
            if key not in fields(factory) and key not in tables:
                allowed = [*fields(factory), *tables]
                remedy = f"unknown key; {registry.choices(allowed, key)}"
                raise Fault(f"rules.{other}.{key}", own[key], remedy)
    own = tree.get("rules", {}).get(name, {})
    merged = {key: value for key, value in tree.items() if key != "rules"}
    merged = overlay(merged, {key: value for key, value in own.items() if key in tables})
    settings = {key: value for key, value in own.items() if key not in tables}
    of_file = in_file if name == in_file["name"] else {}
    merged["rule"] = {**settings, **of_file, "name": name}
    return merged


def overlay(tree: Tree, sections: Tree) -> Tree:
    """The tree with some sections' entries replaced; one that names another factory, wholly."""
    laid = dict(tree)
    for key, value in sections.items():
        base = laid.get(key, {})
        renamed = isinstance(value, dict) and value.get("name", base.get("name")) != base.get(
            "name"
        )
        laid[key] = merge(base, value) if isinstance(value, dict) and not renamed else value
    return laid


def read_pair(text: str) -> tuple[str, Any]:
    """`key=value`, the value as TOML writes it or, failing that, as plain text."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {text}: must be key=value, such as rule.beta=0.1")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def put(tree: Tree, key: str, value: Any) -> None:
    """Sets a dotted key, making sections on the way; a number steps into a list."""
    *way, last = key.split(".")
    node: Any = tree
    for i, step in enumerate(way):
        node = _child(node, step, ".".join(way[: i + 1]), value)
    if isinstance(node, list):
        _child(node, last, key, value)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise Fault(key, value, f"{'.'.join(way)} is a single value and has no keys")


def _child(node: Any, step: str, place: str, value: Any) -> Any:
    if isinstance(node, list):
        if not step.isdecimal() or int(step) >= len(node):
            raise Fault(place, value, f"no such entry; allowed: 0 to {len(node) - 1}")
        return node[int(step)]
    if isinstance(node, dict):
        return node.setdefault(step, {})
    raise Fault(place, value, "stands below a single value, which has no keys")


def merge(base: Tree, over: Tree) -> Tree:
    """`base` with the entries of `over` in place of its own, section by section."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def resolve(kind: str, name: Any, place: str, folder: Path) -> Any:
    try:
        return registry.resolve(kind, name if isinstance(name, str) else repr(name), folder)
    except ValueError as error:
        raise Fault(place, name, str(error)) from None
