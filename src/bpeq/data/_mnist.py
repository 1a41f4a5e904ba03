"""MNIST and Fashion-MNIST: the files of each, found or downloaded, in IDX format."""

from __future__ import annotations

import gzip
import hashlib
import logging
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple, cast

import numpy as np
from annotated_types import Interval
from jaxtyping import UInt8

from bpeq.core.paths import user_path
from bpeq.data._checks import reading
from bpeq.data._dataset import Dataset, finish, single
from bpeq.settings import DataError, checked

_TRAIN, _SIDE, _CLASSES = 60_000, 28, 10
HeldOut = Annotated[int, Interval(ge=0, lt=_TRAIN)]

_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_MNIST = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    ("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
    ("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
    ("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
)
_FASHION = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    ("9018921c3c673c538a1fc5bad174d6f9", "25c81989df183df01b3e8a0aad5dffbe"),
    ("8181f5470baa50b63fa0f6fddb340f0a", "bef4ecab320f06d8554ea6380940ec79"),
    ("15d484375f8d13e6eb1aabb0c3f46965", "bb300cfdad3c16e7a12a480ee83cd310"),
)
_BYTES = 0x08  # the type code of unsigned bytes, the only type in image files
_AXES = 8  # no image file has more dimensions
_LIMIT = 2**32
_CHUNK = 2**20
_TIMEOUT = (10.0, 30.0)
"""Seconds for a connection, and between two parts of an answer: a dead server cannot hang."""


@checked
def mnist(validation: HeldOut = 5000, root: str | None = None) -> Dataset:
    """70,000 handwritten digits, 28 × 28 grey images, 10 classes.

    There is one split. The test set is the official 10,000 images (the last rows of x). The
    validation set is the last `validation` of the 60,000 training images. The mean training pixel
    is 0.1307.

    The files `mnist/NAME.gz` are looked up in `root` if it is given. Otherwise they are looked up
    in `$BPEQ_DATA`, then in the user's cache folder, and then downloaded into it. The md5 of the
    uncompressed bytes is checked, so any copy of the published files is accepted, compressed by
    gzip or not (`NAME` without `.gz`).

    Args:
      validation: the number of training images for validation, >= 0 and < 60,000.
      root: the folder that holds `mnist/`, without a download; None: the places above.

    Returns:
      x `[70000, 28, 28, 1]` float32 in [0, 1] (bytes / 255, about 220 MB); y `[70000]` int32.

    Raises:
      ValueError: a setting is out of range.
      DataError: a file is absent and cannot be downloaded, or is damaged.

    Source: LeCun, Bottou, Bengio & Haffner 1998, Gradient-based learning applied to document
    recognition.
    """
    return _load("mnist", _MNIST, validation, root)


@checked
def fashion_mnist(validation: HeldOut = 5000, root: str | None = None) -> Dataset:
    """70,000 pictures of clothing in MNIST's format: a harder task with the same sizes.

    The 10 classes, from 0: T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag,
    ankle boot. Splits and shapes are those of `mnist`. The files `fashion_mnist/NAME.gz` are looked
    up in the same places. The checksums are the published ones. The tests of bpeq have never read
    the files themselves, unlike those of MNIST.

    Args:
      validation: the number of training images for validation, >= 0 and < 60,000.
      root: the folder that holds `fashion_mnist/`, without a download; None: as for `mnist`.

    Returns:
      x `[70000, 28, 28, 1]` float32 in [0, 1]; y `[70000]` int32.

    Raises:
      ValueError: a setting is out of range.
      DataError: a file is absent and cannot be downloaded, or is damaged.

    Source: Xiao, Rasul & Vollgraf 2017, Fashion-MNIST: a novel image dataset for benchmarking
    machine learning algorithms.
    """
    return _load("fashion_mnist", _FASHION, validation, root)


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
    """Finds `folder/file` of a data set, or downloads it. An uncompressed file counts too.

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
        path = user_path(root) / place
        if (file := _present(path)) is None:
            raise DataError(f"{path}: no such file (root = {root!r} is the only place looked in)")
        return file
    import pooch

    cache = Path(pooch.os_cache("bpeq"))
    user = os.environ.get("BPEQ_DATA")
    paths = [user_path(base) / place for base in (user, cache) if base]
    for file in filter(None, map(_present, paths)):
        return file
    problem = _download(remote, cache / remote.folder)
    if problem:
        raise DataError(
            f"{remote.file} is missing: looked for {' and '.join(map(str, paths))}, download from "
            f"{remote.mirror} failed ({problem}); set BPEQ_DATA to the folder that holds {place}"
        )
    return cache / place


def _present(path: Path) -> Path | None:
    """The file itself, or its uncompressed copy without the `.gz`; None if there is neither."""
    return next((file for file in (path, path.with_suffix("")) if file.is_file()), None)


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


def read_pair(
    images_path: str | Path, labels_path: str | Path, md5s: tuple[str | None, str | None]
) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
    """Reads a file of images and the file of their labels.

    Args:
      images_path: the file of images.
      labels_path: the file of labels.
      md5s: the checksums of the uncompressed bytes of both files; None: any.

    Returns:
      Images `[n, 28, 28]` and labels `[n]`, as bytes.

    Raises:
      DataError: a file is damaged (see `read_idx`), images are not 28 × 28, the numbers of images
        and labels differ, or a label is not in 0 … 9.
    """
    images = read_idx(images_path, dimensions=3, md5=md5s[0])
    labels = read_idx(labels_path, dimensions=1, md5=md5s[1])
    if images.shape[1:] != (_SIDE, _SIDE):
        height, width = images.shape[1:]
        raise DataError(f"{images_path}: images of {height} × {width}, expected 28 × 28")
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: {len(labels)} labels for {len(images)} images")
    wrong = np.flatnonzero(labels >= _CLASSES)
    if len(wrong):
        raise DataError(f"{labels_path}: label {wrong[0]} is {labels[wrong[0]]}, not in 0 … 9")
    return images, labels


def _load(name: str, source: tuple, validation: int, root: str | None) -> Dataset:
    mirror, *md5s = source
    remotes = [Remote(name, file, mirror, *pair) for file, pair in zip(_FILES, md5s, strict=True)]
    paths = [find(remote, root) for remote in remotes]
    md5 = [remote.md5 for remote in remotes]
    train = read_pair(paths[0], paths[1], (md5[0], md5[1]))
    test = read_pair(paths[2], paths[3], (md5[2], md5[3]))
    images, labels = (np.concatenate(part) for part in zip(train, test, strict=True))
    first = _TRAIN - validation
    splits = single(*np.split(np.arange(len(images)), [first, _TRAIN]))
    x = (images / np.float32(255))[..., None]
    y = labels.astype(np.int32)
    return finish(name, x, y, splits, task="classification", outputs=_CLASSES)


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
            raise DataError(f"{path}: not gzip, or a damaged one: {error}") from None
        except EOFError:
            raise DataError(f"{path}: the gzip stream is truncated") from None
        except zlib.error as error:
            raise DataError(f"{path}: the gzip stream is damaged: {error}") from None


def _read(file: BinaryIO, path: Path, dimensions: int | None, md5: str | None) -> np.ndarray:
    magic = _take(file, 4)
    if len(magic) < 4:
        raise DataError(f"{path}: the header is truncated: {len(magic)} bytes of its first 4")
    axes = dimensions or (magic[3] if 1 <= magic[3] <= _AXES else 1)
    expected = bytes([0, 0, _BYTES, axes])
    if magic[:2] == expected[:2] and magic[2] != _BYTES:
        raise DataError(
            f"{path}: type code 0x{magic[2]:02x}, expected 0x{_BYTES:02x}: unsigned bytes"
        )
    if magic != expected:
        raise DataError(f"{path}: magic 0x{magic.hex()}, expected 0x{expected.hex()}")
    header = _take(file, 4 * axes)
    if len(header) < 4 * axes:
        raise DataError(
            f"{path}: the header is truncated: {4 + len(header)} bytes of {4 + 4 * axes}"
        )
    shape = struct.unpack(f">{axes}I", header)
    size = math.prod(shape)
    if not 1 <= size <= _LIMIT:
        raise DataError(f"{path}: the header says {_by(shape)} bytes: allowed are 1 to {_LIMIT}")
    body = _take(file, size)
    more = sum(map(len, iter(lambda: file.read(_CHUNK), b"")))
    if more or len(body) < size:
        found = f"{more} more after them" if more else f"only {len(body)}"
        raise DataError(f"{path}: the header says {_by(shape)} = {size} bytes, there are {found}")
    if md5 is not None:
        digest = hashlib.md5(magic + header + body, usedforsecurity=False).hexdigest()
        if digest != md5:
            raise DataError(f"{path}: md5 of the uncompressed bytes is {digest}, expected {md5}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _take(file: BinaryIO, count: int) -> bytearray:
    """Reads `count` bytes, or fewer at the end of the file."""
    taken = bytearray()
    while len(taken) < count and (piece := file.read(min(count - len(taken), _CHUNK))):
        taken += piece
    return taken


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
