"""The entry point of the command line. Every error is one line on stderr, with an exit code."""

from __future__ import annotations

import ctypes
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from bpeq.cli import signals, supervisor

DONE, BUG, BAD_INPUT = 0, 1, 2
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: the arguments after `bpeq`; None: those of the process.

    Returns:
      The exit code: 0 done; 2 bad input; 3 data, disk or a lost process; 4 numerical; 130 or 143
      interrupted after saving.

    Raises:
      Exception: any other error, which is a bug of bpeq. Python prints the traceback and exits with
        1.
    """
    signals.watch()
    _replace_unknown_characters()
    _keep_programs()
    keep_memory()
    if supervisor.supervised():
        supervisor.settle_in()
    from bpeq.cli import check, train  # noqa: F401  their commands join the app
    from bpeq.cli.options import CommandError, app, say

    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line(warnings.showwarning)
            result = app(arguments, prog_name="bpeq", standalone_mode=False, obj=arguments)
        return result if isinstance(result, int) else DONE
    except CommandError as error:
        return say(getattr(error, "format_message", error.__str__)(), BAD_INPUT)
    except Exception as error:
        if (reason := _import_failure(error)) is not None:
            return say(reason, BAD_INPUT)
        from bpeq.config.errors import exit_code

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


def _replace_unknown_characters() -> None:
    """Makes output replace the characters that the encoding of the terminal lacks, such as β."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _keep_programs() -> None:
    """Keeps compiled programs in the user's cache, so that later runs start faster.

    The environment can name another folder, or turn the cache off.
    """
    from platformdirs import user_cache_path

    try:
        folder = user_cache_path("bpeq") / "programs"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # without a home folder that can be written, every run compiles again
    if os.access(folder, os.W_OK):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def keep_memory() -> None:
    """Makes glibc keep and reuse freed memory, in blocks of up to 256 MiB.

    By default glibc returns blocks above 32 MiB to the system. Every convolution that needs such a
    block then fetches and clears it again. The kept memory counts as used until the process ends.
    If the environment already sets malloc options, they stay.
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or tuned or any(name.startswith("MALLOC_") for name in os.environ):
        return
    library, large = ctypes.CDLL(None), 2**28
    # Other C libraries have no mallopt. An old glibc refuses such a large threshold. The other
    # value alone would do harm.
    if hasattr(library, "mallopt") and library.mallopt(M_MMAP_THRESHOLD, large):
        library.mallopt(M_TRIM_THRESHOLD, large)


def _import_failure(error: Exception) -> str | None:
    """The message if `error` comes from an import of JAX that fails; None if JAX can be imported.

    It names the environment variable at fault. A second import may fail in another way, so that
    the first error gives the reason.
    """
    try:
        import jax  # noqa: F401
    except Exception:
        known = {k: v for k, v in os.environ.items() if k.startswith("JAX_")}
        named = [f"{k} = {v}" for k, v in known.items() if k.lower() in str(error).lower()]
        return f"{', '.join(named) or 'jax cannot be imported'}: {error}"
    return None


def _one_line(others: Callable[..., Any]) -> Callable[..., Any]:
    """Prints each of bpeq's own warnings once, as one line. Other warnings stay as they are.

    A killed run may leave an incomplete program in the cache. JAX compiles it again, so its warning
    is dropped.
    """
    from bpeq.cli.options import say
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
    """The console entry point. It ends the process with the exit code of `main`."""
    code = main()
    signals.ignore()
    sys.exit(supervisor.leave(code))
