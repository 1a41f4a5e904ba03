"""Exit codes, the error that each belongs to, and the line on stderr."""

from __future__ import annotations

import errno
import sys

DONE, BUG, BAD_INPUT, BAD_DATA, NUMERICAL = 0, 1, 2, 3, 4
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
_DISK |= {errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


def exit_code(error: Exception) -> int:
    """The exit code of an error.

    Args:
      error: the error that ended the command.

    Returns:
      2, 3, 4 or 128 + signal; 1 (`BUG`) for an unexpected error.
    """
    from bpeq.config.errors import ConfigError
    from bpeq.types import DataError

    if isinstance(error, ConfigError | FileExistsError):
        return BAD_INPUT
    if isinstance(error, DataError):
        return BAD_DATA
    if isinstance(error, OSError) and error.errno in _DISK:
        return BAD_DATA
    from bpeq.experiment.train import Diverged, Interrupted

    if isinstance(error, Diverged):
        return NUMERICAL
    return 128 + error.signal if isinstance(error, Interrupted) else BUG


def say(message: str, code: int) -> int:
    """Prints one line on stderr, after `bpeq: `.

    Args:
      message: the text. Line breaks become spaces.
      code: an exit code.

    Returns:
      `code`.
    """
    print("bpeq: " + " ".join(message.split()), file=sys.stderr)
    return code
