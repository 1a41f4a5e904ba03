"""ConfigError, the one error of a wrong config or option; and the exit code of each error."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path
from typing import Any

from bpeq.settings import SettingError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
_DISK |= {errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


class ConfigError(SettingError):
    """A config or an option of the command line is wrong. `str(error)` is the line that users see.

    Args:
      place: where the setting was written: a file, or an option such as "--set" or "--tune".
      setting: its dotted key; empty if the option itself is wrong.
      value: the given value; None if no value was given.
      remedy: what is allowed, or what to do.

    Example:
      >>> print(ConfigError("c.toml", "rule.beta", -1, "must be a number > 0"))
      c.toml:rule.beta = -1: must be a number > 0
      >>> print(ConfigError("--tune", "", 0, "must be a whole number >= 1"))
      --tune = 0: must be a whole number >= 1
    """

    exit_code = 2

    def __init__(self, place: str, setting: str = "", value: Any = None, remedy: str = "") -> None:
        super().__init__(place, setting, value, remedy)

    @property
    def place(self) -> str:
        """The file or the option where the setting was written."""
        return self.owner

    def __str__(self) -> str:
        between = " " if self.place.startswith("--") else ":"
        subject = between.join(filter(None, (self.place, self.setting)))
        value = "" if self.value is None else f" = {_shown(self.value)}"
        return f"{subject}{value}: {self.remedy}" if self.remedy else subject


def exit_code(error: Exception) -> int:
    """The exit code of an error. bpeq's own errors declare it in their `exit_code`.

    Args:
      error: the error that ended a command or a run.

    Returns:
      2, 3, 4 or 128 + signal; 1 for an unexpected error.
    """
    if isinstance(error, FileExistsError):
        return 2
    if isinstance(error, OSError) and error.errno in _DISK:
        return 3
    return getattr(error, "exit_code", 1)


def describe_error(error: BaseException, files: frozenset[str] = frozenset()) -> str:
    """Describes an error in one line, such as `mine.py, line 3: KeyError: 'a'`.

    Args:
      error: the error.
      files: the user's files. The line names the innermost place in one of them; empty: the
        innermost place of all files.

    Returns:
      The line. For an error of bpeq's own checks it is the message alone.
    """
    places = traceback.extract_tb(error.__traceback__)
    last = [place for place in places if place.filename in files or not files]
    text = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
    if isinstance(error, SettingError) or (type(error) is ValueError and not last):
        return str(error)  # a check of bpeq, whose message is for the user
    if not last or isinstance(error, SyntaxError):  # a SyntaxError names its file and line
        return text
    return f"{Path(last[-1].filename).name}, line {last[-1].lineno}: {text}"


def _shown(value: Any) -> str:
    """Shortens a value to at most 60 characters."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
