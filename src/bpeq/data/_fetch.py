"""Finds data files: in the user's folder, in the user's cache, or by download."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

from bpeq.data._checks import data_error

_TIMEOUT = (10.0, 30.0)
"""Seconds for a connection, and between two parts of an answer: a dead server cannot hang."""


class Remote(NamedTuple):
    """One file of a data set.

    Args:
      folder: the folder of the data set.
      file: the name of the file.
      mirror: the address of the server.
      md5: the checksum of the uncompressed bytes, which is checked for any copy.
      gzip_md5: the checksum of the compressed file from the mirror.
    """

    folder: str
    file: str
    mirror: str
    md5: str
    gzip_md5: str


def find(remote: Remote, root: str | None) -> Path:
    """Finds `folder/file` of a data set, or downloads it.

    Without `root` these places are tried in order: `$BPEQ_DATA`, the user's cache folder
    (`~/.cache/bpeq` on Linux), and a download into that cache. A download with a wrong checksum is
    not kept.

    Args:
      remote: the file.
      root: the only folder to look in, without a download; None: the places above.

    Returns:
      The path of the file.

    Raises:
      DataError: the file is in none of these places.
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
    """Downloads the file into `folder`. Returns the failure in a few words, or an empty text."""
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
