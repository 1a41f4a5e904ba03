"""float64 oracles under strict promotion; every warning is an error (see pyproject).

`call`: the command line in this process, with its exit code and what it wrote.
"""

import contextlib
import io
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

# Compiling is what the tests spend their time on: no optimisation halves it, and changes no oracle.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

# Many tests compile the same programs: what one has compiled, in any process, the others load.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".jax_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import jax
import pytest

from bpeq.cli import main, signals
from bpeq.types import Caution

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")


SLOW = [
    line
    for line in Path(__file__).with_name("slow.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that slow.txt lists; a name without parameters stands for all of them."""
    for item in items:
        listed = {item.nodeid, item.nodeid.partition("[")[0]} & set(SLOW)
        if listed and item.get_closest_marker("long") is None:
            item.add_marker(pytest.mark.slow)


class Said(NamedTuple):
    """An exit code, stdout, the lines of stderr, and whether a progress bar was among them."""

    code: int
    out: str
    err: list[str]
    bar: bool


Call = Callable[..., Said]


@pytest.fixture(scope="session")
def call() -> Call:
    """(*argv) -> Said. An exception that `main` lets through is a bug, and fails the test."""

    def call(*argv: object) -> Said:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as users:
            users.enter_context(_own_signals())
            # jax as a user's process has it; optax does not keep to strict promotion.
            users.enter_context(jax.enable_x64(False))
            users.enter_context(jax.numpy_dtype_promotion("standard"))
            users.enter_context(warnings.catch_warnings())
            warnings.simplefilter("default", Caution)
            users.enter_context(mock.patch("os.fsync"))  # a disk's patience is not what is tested
            users.enter_context(contextlib.redirect_stdout(out))
            users.enter_context(contextlib.redirect_stderr(err))
            code = main([str(word) for word in argv])
        lines = [line for line in err.getvalue().splitlines() if line.strip()]
        messages = [line for line in lines if not re.search(r"\d/\d+ (epochs|steps|runs)", line)]
        return Said(code, out.getvalue(), messages, bar=messages != lines)

    return call


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """pytest's signal handlers come back afterwards, and no call inherits another's state."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signals._saving = False
        signals._seen.clear()


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Compiled programs of a module's tests are dropped after it: they would fill the memory."""
    yield
    jax.clear_caches()
