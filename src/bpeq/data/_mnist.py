"""MNIST and Fashion-MNIST, from the four IDX files of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Interval
from jaxtyping import UInt8

from bpeq.data._checks import data_error
from bpeq.data._fetch import Remote, find
from bpeq.data._finish import finish
from bpeq.data._idx import read_idx
from bpeq.data._splits import single
from bpeq.data._types import Dataset
from bpeq.settings import checked

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


@checked
def mnist(validation: HeldOut = 5000, root: str | None = None) -> Dataset:
    """70,000 handwritten digits, 28 × 28 grey images, 10 classes.

    There is one split. The test set is the official 10,000 images (the last rows of x). The
    validation set is the last `validation` of the 60,000 training images. The mean training pixel
    is 0.1307.

    The files `mnist/NAME.gz` are looked up in `root` if it is given. Otherwise they are looked up
    in `$BPEQ_DATA`, then in the user's cache folder, and then downloaded into it. The md5 of the
    uncompressed bytes is checked, so any gzip copy of the published files is accepted.

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
        raise data_error(f"{images_path}: images of {height} × {width}, expected 28 × 28")
    if len(images) != len(labels):
        raise data_error(f"{labels_path}: {len(labels)} labels for {len(images)} images")
    wrong = np.flatnonzero(labels >= _CLASSES)
    if len(wrong):
        raise data_error(f"{labels_path}: label {wrong[0]} is {labels[wrong[0]]}, not in 0 … 9")
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
