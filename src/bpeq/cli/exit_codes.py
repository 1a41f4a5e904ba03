"""Exit codes, which error means which, and the one line that goes with them."""

from __future__ import annotations

import errno
import sys

DONE, BUG, BAD_INPUT, BAD_DATA, NUMERICAL = 0, 1, 2, 3, 4
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
_DISK |= {errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


def exit_code(error: Exception) -> int:
    """The exit code that an error stands for; BUG for any that is not expected."""
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
    """Prints one plain line on stderr; returns `code`."""
    print("bpeq: " + " ".join(message.split()), file=sys.stderr)
    return code
