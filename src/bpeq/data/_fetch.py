"""Where data files are: the user's folder, then the user's cache, then the net."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

from bpeq.data._checks import data_error

_TIMEOUT = (10.0, 30.0)
"""Seconds for a connection, and between two pieces of an answer: a dead mirror does not hang."""


class Remote(NamedTuple):
    """One file of a data set.

    md5: of the uncompressed bytes, which count: compressed copies of one file may differ.
    gzip_md5: of the compressed file that the mirror sends.
    """

    folder: str
    file: str
    mirror: str
    md5: str
    gzip_md5: str


def find(remote: Remote, root: str | None) -> Path:
    """Path of `folder/file` under the first of these that has it.

    `root` where it is given, and then nowhere else; otherwise `$BPEQ_DATA`, the user's cache folder
    (`~/.cache/bpeq` on Linux), and a download into that cache, kept only if its checksum is right.

    Args:
      remote: the file.
      root: the only folder to look in; None: the three places below.

    Raises:
      DataError: it is in none of them.
    """
    place = Path(remote.folder) / remote.file
    if root is not None:
        path = Path(root).expanduser() / place
        if not path.is_file():
            raise data_error(f"{path}: no such file (root = {root!r} is the only place looked in)")
        return path
    import pooch

    cache = Path(pooch.os_cache("bpeq"))
    user = os.environ.get("BPEQ_DATA")
    paths = [Path(base).expanduser() / place for base in (user, cache) if base]
    for path in paths:
        if path.is_file():
            return path
    problem = _download(remote, cache / remote.folder)
    if problem:
        raise data_error(
            f"{remote.file} is missing: looked for {' and '.join(map(str, paths))}, download from "
            f"{remote.mirror} failed ({problem}); set BPEQ_DATA to the folder that holds {place}"
        )
    return cache / place


def _download(remote: Remote, folder: Path) -> str:
    """Fetches the file into `folder`; what went wrong, in a few words."""
    import pooch

    log = pooch.get_logger()
    level = log.level
    log.setLevel(logging.WARNING)  # pooch announces downloads; the library never prints
    try:
        pooch.retrieve(
            remote.mirror + remote.file,
            known_hash=f"md5:{remote.gzip_md5}",
            fname=remote.file,
            path=folder,
            downloader=pooch.HTTPDownloader(timeout=_TIMEOUT),
        )
    except OSError as error:  # requests' errors are OSErrors
        return type(error).__name__
    except ValueError:
        return "the checksum of what arrived is wrong"
    finally:
        log.setLevel(level)
    return ""
