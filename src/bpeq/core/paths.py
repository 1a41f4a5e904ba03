"""Paths as users write them."""

from __future__ import annotations

import os
import pathlib


def user_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Expands `~` and `~name` at the start of a path. No file is touched.

    Every function of bpeq that takes a path from a user calls this function first. A shell expands
    `~` only where a word begins with it, so not in `--out=~/x`.

    Args:
      path: the path as the user wrote it.

    Returns:
      The path. A `~name` without such a user stays as it is.

    Example:
      >>> user_path("runs/one").as_posix()
      'runs/one'
    """
    return pathlib.Path(os.path.expanduser(path))
