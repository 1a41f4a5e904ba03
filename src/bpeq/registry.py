"""Factories by the names that configs use, and by dotted path where the factory is a user's own."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bpeq import costs, data, layers, optimizers, rules, solvers, systems

Factory = Callable[..., Any]


def _table(module: Any, names: str) -> dict[str, Factory]:
    return {name: getattr(module, name) for name in names.split()}


KINDS: dict[str, dict[str, Factory]] = {
    "layers": _table(
        layers,
        "dense flatten linear relu tanh sigmoid hard_sigmoid shifted_sigmoid softplus gelu",
    ),
    "costs": _table(costs, "squared_error softmax_cross_entropy"),
    "systems": _table(systems, "hopfield"),
    "solvers": _table(solvers, "fixed_steps fixed_point"),
    "rules": _table(rules, "backprop autodiff eqprop recurrent_backprop"),
    "data": _table(data, "xor digits diabetes mnist fashion_mnist npz csv"),
    "optimizers": _table(optimizers, "sgd momentum rmsprop adam adamw"),
    "schedules": _table(optimizers, "constant cosine linear_decay exponential"),
}


def resolve(kind: str, name: str, folder: Path | None = None) -> Factory:
    """The factory of a kind by its name, or by dotted path `package.module:factory`.

    A dotted path imports the user's module, which runs its code. It is looked for where Python
    looks, then in the working directory, then in `folder`, the config's own.

    Raises:
      ValueError: no such name; the message lists the permitted ones and the nearest.
    """
    if ":" in name:
        return _import(name, folder)
    if name not in KINDS[kind]:
        raise ValueError(choices(KINDS[kind], name))
    return KINDS[kind][name]


def choices(allowed: Iterable[str], given: str) -> str:
    """What is allowed, with the nearest name to a mistyped one."""
    allowed = list(allowed)
    near = difflib.get_close_matches(given, allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"allowed: {', '.join(allowed)}{hint}"


def _import(name: str, folder: Path | None) -> Factory:
    module_name, _, attribute = name.partition(":")
    extra = [str(Path.cwd()), *([str(folder.resolve())] if folder else [])]
    sys.path.extend(extra)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"cannot import {module_name!r}: {error}") from error
    finally:
        for entry in extra:
            sys.path.remove(entry)
    if not callable(getattr(module, attribute, None)):
        raise ValueError(f"the module {module_name!r} has no factory {attribute!r}")
    return getattr(module, attribute)
