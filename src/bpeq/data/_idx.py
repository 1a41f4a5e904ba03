"""Reads the IDX format of the MNIST files: a big-endian header, then unsigned bytes."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from jaxtyping import UInt8

from bpeq.data._checks import data_error, reading

_BYTES = 0x08  # the type code of unsigned bytes, the only type in image files
_AXES = 8  # no image file has more dimensions
_LIMIT = 2**32
_CHUNK = 2**20


def read_idx(
    path: str | Path, *, dimensions: int | None = None, md5: str | None = None
) -> UInt8[np.ndarray, "n ..."]:
    """Reads the array of unsigned bytes in an IDX file. A name in `.gz` means gzip compression.

    The file begins with two zero bytes, a type code (8, unsigned bytes) and the number of
    dimensions. The size of each dimension follows as a 32-bit big-endian number, then the entries,
    last axis fastest. The function allocates memory only for bytes that it has read, because a
    header may be wrong.

    Args:
      path: the file.
      dimensions: the required number of dimensions (1 for labels, 3 for grey images); None: any.
      md5: the required checksum of the *uncompressed* bytes, in hexadecimal; None: any.

    Returns:
      The array.

    Raises:
      DataError: the file is absent, unreadable, damaged, or not IDX; it has another type, number of
        dimensions or checksum; or it is shorter or longer than its header says.

    Source: LeCun, Cortes & Burges, The MNIST database of handwritten digits.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with reading(path):
        try:
            with opener(path, "rb") as file:
                return _read(cast(BinaryIO, file), path, dimensions, md5)
        except gzip.BadGzipFile as error:
            raise data_error(f"{path}: not gzip, or a damaged one: {error}") from None
        except EOFError:
            raise data_error(f"{path}: the gzip stream is truncated") from None
        except zlib.error as error:
            raise data_error(f"{path}: the gzip stream is damaged: {error}") from None


def _read(file: BinaryIO, path: Path, dimensions: int | None, md5: str | None) -> np.ndarray:
    magic = _take(file, 4)
    axes = dimensions or (magic[3] if len(magic) == 4 and 1 <= magic[3] <= _AXES else 1)
    expected = bytes([0, 0, _BYTES, axes])
    if len(magic) < 4:
        raise data_error(f"{path}: the header is truncated: {len(magic)} bytes of its first 4")
    if magic[:2] == expected[:2] and magic[2] != _BYTES:
        raise data_error(
            f"{path}: type code 0x{magic[2]:02x}, expected 0x{_BYTES:02x}: unsigned bytes"
        )
    if magic != expected:
        raise data_error(f"{path}: magic 0x{magic.hex()}, expected 0x{expected.hex()}")
    header = _take(file, 4 * axes)
    if len(header) < 4 * axes:
        raise data_error(
            f"{path}: the header is truncated: {4 + len(header)} bytes of {4 + 4 * axes}"
        )
    shape = struct.unpack(f">{axes}I", header)
    size = math.prod(shape)
    if not 1 <= size <= _LIMIT:
        raise data_error(f"{path}: the header says {_by(shape)} bytes: allowed are 1 to {_LIMIT}")
    body = _take(file, size + 1)
    if len(body) != size:
        found = f"only {len(body)}" if len(body) < size else "more"
        raise data_error(f"{path}: the header says {_by(shape)} = {size} bytes, there are {found}")
    if md5 is not None:
        digest = hashlib.md5(magic + header + body, usedforsecurity=False).hexdigest()
        if digest != md5:
            raise data_error(f"{path}: md5 of the uncompressed bytes is {digest}, expected {md5}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _take(file: BinaryIO, count: int) -> bytearray:
    """Reads `count` bytes, or fewer at the end of the file."""
    taken = bytearray()
    while len(taken) < count and (piece := file.read(min(count - len(taken), _CHUNK))):
        taken += piece
    return taken


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
