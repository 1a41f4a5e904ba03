"""The command line: every error is one plain line on stderr and an exit code of its own."""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from bpeq.cli import signals, supervisor
from bpeq.cli.exit_codes import BAD_INPUT, BUG, DONE, exit_code, say

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0 done; 2 bad input; 3 data or disk; 4 numerical; 130/143 interrupted after saving. Anything
    else that goes wrong is a bug of ours, keeps its traceback and returns 1.
    """
    signals.watch()
    _keep_programs()
    keep_memory()
    if supervisor.supervised():
        supervisor.settle_in()
    from bpeq.cli import check, compare, fidelity, run, show, sweep  # noqa: F401  join the app
    from bpeq.cli.app import CommandError, app

    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line(warnings.showwarning)
            result = app(arguments, prog_name="bpeq", standalone_mode=False, obj=arguments)
        return result if isinstance(result, int) else DONE
    except CommandError as error:
        return say(getattr(error, "format_message", error.__str__)(), BAD_INPUT)
    except Exception as error:
        if (said := _environment(error)) is not None:
            return say(said, BAD_INPUT)
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            remedy = "use a smaller network or batch, or fewer seeds"
            return say(f"out of memory: {str(error).splitlines()[0]}; {remedy}", BAD_INPUT)
        code = exit_code(error)
        if code == BUG and supervisor.supervised() and type(error).__name__ == "JaxRuntimeError":
            return supervisor.alone(error)
        if code == BUG:
            raise
        if isinstance(error, OSError) and error.filename is not None:
            return say(f"{error.filename}: {error.strerror}", code)
        return say(str(error), code)


def _keep_programs() -> None:
    """Compiled programs outlive the process, so that the next run of their kind starts at once.

    They are in the user's cache, unless the environment names another folder, or none at all.
    """
    from platformdirs import user_cache_path

    try:
        folder = user_cache_path("bpeq") / "programs"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # no home, or none to write to: every run compiles afresh
    if os.access(folder, os.W_OK):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def keep_memory() -> None:
    """Memory that is freed is kept and used again, in pieces of up to 256 MiB.

    By itself glibc hands pieces of over 32 MiB back to the system, and every convolution that needs
    one fetches and clears it anew. What is kept counts as the process's own until
    it ends. A setting of the environment's own is left alone.
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or tuned or any(name.startswith("MALLOC_") for name in os.environ):
        return
    library, large = ctypes.CDLL(None), 2**28
    # Other C libraries have no mallopt. An old glibc refuses a threshold as large as this; to set
    # the other value alone would be worse than nothing.
    if hasattr(library, "mallopt") and library.mallopt(M_MMAP_THRESHOLD, large):
        library.mallopt(M_TRIM_THRESHOLD, large)


def _environment(error: Exception) -> str | None:
    """What to say where jax could not even be imported, for a variable that it reads then."""
    places = traceback.extract_tb(error.__traceback__)
    if "jax" in sys.modules or not any("/jax/" in place.filename for place in places):
        return None
    found = {k: v for k, v in os.environ.items() if k.startswith("JAX_")}
    named = [f"{k} = {v}" for k, v in found.items() if k.lower() in str(error).lower()]
    return f"{', '.join(named) or 'jax cannot be imported'}: {error}"


def _one_line(others: Callable[..., Any]) -> Callable[..., Any]:
    """Our own warnings as one plain line, each once; others' as they are.

    A program that a killed run left half written in the cache is compiled afresh: nobody's worry.
    """
    from bpeq.types import Caution

    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if "persistent compilation cache entry" in str(message):
            return
        if not issubclass(category, Caution):
            others(message, category, *place, **more)
        elif str(message) not in seen:
            seen.add(str(message))
            say(str(message), DONE)

    return show


def script() -> None:
    """The console entry point."""
    sys.exit(supervisor.leave(main()))
