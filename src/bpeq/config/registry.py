"""Maps the names in configs to factories. A user's own factory has a dotted path."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import optax

from bpeq import costs, data, layers, rules, solvers, systems, types
from bpeq.config.errors import describe_error
from bpeq.core.paths import user_path
from bpeq.settings import nearest
from bpeq.systems import devices
from bpeq.training import optimizers

Factory = Callable[..., Any]


def _table(module: Any, names: str) -> dict[str, Factory]:
    return {name: getattr(module, name) for name in names.split()}


KINDS: dict[str, dict[str, Factory]] = {
    "layers": _table(
        layers,
        "dense conv flatten max_pool avg_pool soft_pool batch_norm layer_norm dropout embedding "
        "position_embedding attention rnn gru lstm residual repeat chain "
        "linear relu tanh sigmoid hard_sigmoid shifted_sigmoid softplus gelu",
    ),
    "costs": _table(costs, "squared_error softmax_cross_entropy"),
    "systems": _table(systems, "hopfield predictive resistive"),
    "imperfections": _table(devices, "imperfect"),
    "solvers": _table(solvers, "fixed_steps fixed_point anderson"),
    "rules": _table(
        rules,
        "backprop autodiff eqprop continual_eqprop vector_field_eqprop asymmetric_eqprop "
        "recurrent_backprop bptt contrastive_hebbian coupled_learning "
        "feedback_alignment direct_feedback_alignment sign_symmetric kolen_pollack "
        "predictive_coding dual_propagation target_propagation",
    ),
    "data": _table(data, "xor digits diabetes mnist fashion_mnist npz csv"),
    "optimizers": _table(optimizers, "sgd momentum rmsprop adam adamw"),
    "schedules": _table(optimizers, "constant cosine linear_decay exponential"),
}

WORDS: dict[str, tuple[type, ...]] = {
    "layers": (types.Layer,),
    "costs": (types.Cost,),
    "systems": (types.System,),
    "imperfections": (types.System, types.LearningRule),
    "solvers": (types.Solver,),
    "rules": (types.LearningRule,),
    "data": (data.Dataset,),
    "optimizers": (optax.GradientTransformation,),
    "schedules": (types.Schedule,),
}
"""Kind of factory -> the words that it may declare as its result."""


class Unreadable(NamedTuple):
    """An annotation that cannot be read.

    Args:
      reason: the error, in one line.
    """

    reason: str


@cache
def read_annotations(factory: Factory) -> dict[str, Any]:
    """Reads the annotations of a factory.

    Args:
      factory: the factory.

    Returns:
      Argument, or "return" -> its annotation, or `Unreadable`.
    """
    try:
        return get_type_hints(factory, include_extras=True)
    except BaseException:  # an annotation may be any expression: read each by itself
        function = inspect.unwrap(factory)
    names = getattr(function, "__globals__", {})
    annotations: dict[str, Any] = {}

    def one() -> None:
        """Holds one annotation at a time."""

    for name, annotation in getattr(function, "__annotations__", {}).items():
        one.__annotations__ = {name: annotation}
        try:
            annotations |= get_type_hints(one, names, include_extras=True)
        except BaseException as error:
            annotations[name] = Unreadable(str(error).partition("\n")[0])
    return annotations


def resolve(kind: str, name: str, folder: Path | None = None) -> Factory:
    """Finds the factory of a kind by its name, or by a dotted path `package.module:factory`.

    A dotted path imports the user's module, which runs the code at its top level. The module is
    looked up where Python looks, then in the working directory, then in `folder`. The factory must
    declare its result by a word of the kind, such as `-> LearningRule`. Other functions are never
    called.

    Args:
      kind: a key of `KINDS`.
      name: the name or the dotted path.
      folder: the folder of the config; None: it is not searched.

    Returns:
      The factory.

    Raises:
      ValueError: there is no such name, and the message lists the permitted names and the nearest
        one; or the factory of a dotted path does not declare its result.
    """
    if ":" in name:
        return _import(kind, name, folder)
    if name not in KINDS[kind]:
        module, _, attribute = name.rpartition(".")
        dotted = f"; a path is written '{module}:{attribute}'" if module else ""
        raise ValueError(choices(KINDS[kind], name) + dotted)
    return KINDS[kind][name]


def load_study(path: str, folder: Path) -> Factory:
    """Loads the function `run` of a study file. This runs the code of the file.

    The files beside it are its submodules: `from .cartpole import step`. The study file is looked
    up in `folder`, then in the working directory.

    Args:
      path: the path of the study file.
      folder: the folder of the config.

    Returns:
      The function `run`.

    Raises:
      ValueError: the file does not exist, its code fails, or it has no `run(config, runner, ...)`.
    """
    file = next((p for p in (folder / user_path(path), user_path(path)) if p.is_file()), None)
    if file is None:
        raise ValueError("no such study file beside the config or here")
    return _executed(file.resolve(), file.stat().st_mtime_ns)


@cache
def _executed(path: Path, _changed: int) -> Factory:
    """Executes a study file. The result is cached until the file changes."""
    name, beside = f"study_{path.parent.name}_{path.stem}", [str(path.parent)]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=beside)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # get_type_hints and dataclasses look here
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # also a sys.exit
        raise ValueError(f"cannot be run: {describe_error(error)}") from error
    run = getattr(module, "run", None)
    if not inspect.isfunction(run) or len(inspect.signature(run).parameters) < 2:
        raise ValueError("has no function run(config, runner, ...)")
    for annotation in read_annotations(run).values():
        if isinstance(annotation, Unreadable):
            raise ValueError(f"the signature of its run cannot be read: {annotation.reason}")
    return run


def choices(allowed: Iterable[str], name: str) -> str:
    """Lists the permitted names, with the one nearest to a mistyped name.

    Args:
      allowed: the permitted names.
      name: the mistyped name; empty if a name is missing.

    Returns:
      The text, for an error message.
    """
    allowed = list(allowed)
    return f"allowed: {', '.join(allowed) or 'none here'}{nearest(allowed, name)}"


def _import(kind: str, name: str, folder: Path | None) -> Factory:
    """Imports a user's factory by its dotted path, and checks what it declares."""
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ValueError(f"{name!r} is no dotted path such as 'package.module:factory'")
    if module_name.partition(".")[0] in sys.stdlib_module_names:  # os:system, builtins:exec, …
        raise ValueError(f"{module_name!r} is Python's own module, which holds no factories")
    before = list(sys.path)
    extra = [str(Path.cwd()), *([str(folder.resolve())] if folder else [])]
    sys.path.extend(entry for entry in extra if entry not in before)
    importlib.invalidate_caches()  # Python must find a file that was just written
    try:
        _check_unambiguous(module_name.partition(".")[0])
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"cannot import {module_name!r}: {error}") from error
    except BaseException as error:  # also a sys.exit
        raise ValueError(f"cannot import {module_name!r}: {describe_error(error)}") from error
    finally:
        sys.path[:] = [entry for entry in sys.path if entry in before or entry not in extra]
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [n for n, value in vars(module).items() if inspect.isroutine(value)]
        near = nearest(names, attribute)
        raise ValueError(f"the module {module_name!r} has no factory {attribute!r}{near}")
    _check_declared(kind, attribute, factory)
    return factory


def _check_declared(kind: str, name: str, factory: Factory) -> None:
    """Raises ValueError if a factory does not declare that it makes a part of this kind."""
    declared = read_annotations(factory).get("return")
    union = get_origin(declared) in (Union, UnionType)
    if all(_is_word(kind, option) for option in (get_args(declared) if union else (declared,))):
        _check_signature(repr(name), factory)
        return
    words = WORDS[kind]
    if declared is None:
        problem = "declares no result"
    elif isinstance(declared, Unreadable):
        problem = f"declares a result that cannot be read ({declared.reason})"
    else:
        problem = f"declares the result {getattr(declared, '__name__', declared)}"
    result = " | ".join(word.__name__ for word in words)
    module = words[0].__module__.partition("._")[0]  # the public one
    raise ValueError(
        f"{problem}, so it is not called; write def {name}(...) -> {result}, from {module}"
    )


def _is_word(kind: str, declared: Any) -> bool:
    """Whether a declared result is a word of this kind, or a class made of it."""
    return isinstance(declared, type) and any(word in declared.__mro__ for word in WORDS[kind])


def _check_signature(name: str, factory: Factory) -> None:
    """Raises ValueError if the signature of a factory cannot be read."""
    try:
        inspect.signature(factory)
    except BaseException as error:  # its reading may run the user's code
        raise ValueError(f"the signature of {name} cannot be read: {error}") from error


def _check_unambiguous(name: str) -> None:
    """Raises ImportError if another module of this name is already loaded."""
    loaded = getattr(sys.modules.get(name), "__file__", None)
    spec = PathFinder.find_spec(name) if loaded else None
    if loaded and spec and spec.origin and Path(spec.origin).resolve() != Path(loaded).resolve():
        raise ImportError(f"it is already loaded from {loaded}, not {spec.origin}; rename one")
