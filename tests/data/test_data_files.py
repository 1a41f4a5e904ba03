"""Data files: what is read, and the one line that says what is wrong with a bad one."""

import gzip
import hashlib
import io
import os
import pickle
import socket
import struct
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pooch
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bpeq.data import Dataset, csv, fashion_mnist, mnist, npz, read_idx
from bpeq.data import _mnist as fetch
from bpeq.data._mnist import read_pair
from bpeq.types import Caution, DataError

USER_DATA = os.environ.get("BPEQ_DATA")
needs_mnist = pytest.mark.skipif(
    not (USER_DATA and Path(USER_DATA, "mnist").is_dir()),
    reason="BPEQ_DATA does not name a folder that holds mnist/",
)
FILES = [
    f"{part}-ubyte.gz"
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
]


def refusal(call: Callable[[], object]) -> str:
    """The message of the DataError that `call` must raise: one line."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


def setting_error(call: Callable[[], object]) -> str:
    """The message of the ValueError that is a setting's fault, not the data's."""
    with pytest.raises(ValueError, match=r"\w") as caught:
        call()
    assert not isinstance(caught.value, DataError)
    return str(caught.value)


def tried(path: Path, call: Callable[[], object]) -> object | None:
    """What `call` returns, or None where it raises a DataError of one line that names the file."""
    try:
        return call()
    except DataError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert message.splitlines() == [message]
    return None


# --- IDX ---------------------------------------------------------------------------------------


def idx(array: np.ndarray, code: int = 8) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


IMAGES = np.arange(2 * 3 * 4).reshape(2, 3, 4)
SOUND = idx(IMAGES)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3), (2, 3, 4), (2, 1, 3, 2)])
@pytest.mark.parametrize("zipped", [False, True])
def test_read_idx_inverts_writing(write, shape: tuple[int, ...], zipped: bool) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    content = idx(array)
    path = write("a.gz" if zipped else "a", gzip.compress(content) if zipped else content)
    md5 = hashlib.md5(content).hexdigest()
    read = read_idx(path, dimensions=len(shape), md5=md5)
    assert read.dtype == np.uint8
    assert np.array_equal(read, array)
    assert np.array_equal(read_idx(str(path)), array)


BAD_CONTENT = {
    "empty": (b"", "the header is truncated: 0 bytes of its first 4"),
    "magic cut": (SOUND[:3], "the header is truncated: 3 bytes of its first 4"),
    "header cut": (SOUND[:15], "the header is truncated: 15 bytes of 16"),
    "magic": (b"\1" + SOUND[1:], "magic 0x01000803, expected 0x00000803"),
    "html": (b"<html></html>", "magic 0x3c68746d, expected 0x00000801"),
    "no dimension": (b"\0\0\x08\0" + bytes(20), "magic 0x00000800, expected 0x00000801"),
    "too many dimensions": (b"\0\0\x08\x09" + b"\0\0\0\1" * 9 + b"x", "magic 0x00000809"),
    "float type": (idx(IMAGES, 0x0D), "type code 0x0d, expected 0x08: unsigned bytes"),
    "short": (SOUND[:-1], "the header says 2 × 3 × 4 = 24 bytes, there are only 23"),
    "only header": (SOUND[:16], "the header says 2 × 3 × 4 = 24 bytes, there are only 0"),
    "long": (SOUND + b"x", "the header says 2 × 3 × 4 = 24 bytes, there are 1 more after them"),
    "zero": (idx(np.zeros((0, 3, 4))), "the header says 0 × 3 × 4 bytes: allowed are 1 to"),
    "absurd": (
        b"\0\0\x08\x03" + b"\xff" * 12 + b"x",
        "the header says 4294967295 × 4294967295 × 4294967295 bytes: allowed are 1 to 4294967296",
    ),
    "huge": (
        b"\0\0\x08\x01\xff\xff\xff\xff" + b"x",
        "the header says 4294967295 = 4294967295 bytes, there are only 1",
    ),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("case", BAD_CONTENT)
def test_read_idx_says_what_is_wrong(write, case: str, zipped: bool) -> None:
    content, reason = BAD_CONTENT[case]
    path = write("bad.gz" if zipped else "bad", gzip.compress(content) if zipped else content)
    assert refusal(lambda: read_idx(path)).startswith(f"{path}: {reason}")


def test_labels_where_images_belong_are_a_wrong_magic(write) -> None:
    path = write("labels", idx(np.arange(5)))
    message = refusal(lambda: read_idx(path, dimensions=3))
    assert message == f"{path}: magic 0x00000801, expected 0x00000803"


def test_another_checksum_is_refused_with_both(write) -> None:
    path = write("a.gz", gzip.compress(SOUND))
    found = hashlib.md5(SOUND).hexdigest()
    message = refusal(lambda: read_idx(path, md5="0" * 32))
    assert message == f"{path}: md5 of the uncompressed bytes is {found}, expected {'0' * 32}"


ZIPPED = gzip.compress(SOUND, mtime=0)
BAD_GZIP = {
    "plain": (SOUND, "not gzip, or a damaged one: Not a gzipped file"),
    "cut": (ZIPPED[:-9], "the gzip stream is truncated"),
    "cut trailer": (ZIPPED[:-1], "the gzip stream is truncated"),
    "crc": (ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:], "not gzip, or a damaged one: CRC check"),
    "stream": (ZIPPED[:10] + b"\xff" * 8 + ZIPPED[18:], "the gzip stream is damaged"),
}


@pytest.mark.parametrize("case", BAD_GZIP)
def test_read_idx_refuses_broken_gzip(write, case: str) -> None:
    content, reason = BAD_GZIP[case]
    path = write("bad.gz", content)
    assert refusal(lambda: read_idx(path)).startswith(f"{path}: {reason}")


@pytest.mark.parametrize("name", ["absent", "absent.gz"])
def test_read_idx_names_an_absent_file(tmp_path: Path, name: str) -> None:
    assert refusal(lambda: read_idx(tmp_path / name)) == f"{tmp_path / name}: no such file"


def test_read_idx_refuses_a_folder(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refusal(lambda: read_idx(tmp_path))


def test_an_absurd_header_takes_no_memory(write) -> None:
    path = write("a", b"\0\0\x08\x01\xff\xff\xff\xff" + bytes(100))
    tracemalloc.start()
    refusal(lambda: read_idx(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


HEADERS = st.builds(
    lambda code, shape, body: b"\0\0" + bytes([code, len(shape)]) + struct.pack(
        f">{len(shape)}I", *shape
    ) + body,
    st.sampled_from([8, 8, 8, 9, 13]),
    st.lists(st.integers(0, 4) | st.integers(0, 2**32 - 1), max_size=10),
    st.binary(max_size=40),
)  # fmt: skip
DAMAGED = st.builds(
    lambda position, bits: bytes(
        byte ^ (bits if place == position % len(ZIPPED) else 0) for place, byte in enumerate(ZIPPED)
    ),
    st.integers(0, 200),
    st.integers(0, 255),
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(content=st.binary(max_size=60) | HEADERS | DAMAGED, wrap=st.booleans(), gz=st.booleans())
@example(content=b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"x", wrap=False, gz=False)
@example(content=b"\0\0\x08\x03" + b"\0\0\0\0" + b"\xff" * 8, wrap=False, gz=False)
def test_any_bytes_are_an_array_or_a_data_error(
    tmp_path_factory, content: bytes, wrap: bool, gz: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / ("fuzz.gz" if gz else "fuzz")
    path.write_bytes(gzip.compress(content) if wrap else content)
    array = tried(path, lambda: read_idx(path))
    if array is not None:
        raw = gzip.decompress(path.read_bytes()) if gz else path.read_bytes()
        assert idx(array) == raw


# --- MNIST -------------------------------------------------------------------------------------


def pair(write, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    paths = write("images", idx(images)), write("labels", idx(labels))
    return lambda: read_pair(*paths, (None, None))


def test_a_pair_of_files_is_read_as_it_was_written(write) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28))
    read, labels = pair(write, images, np.array([9, 0, 4]))()
    assert np.array_equal(read, images)
    assert labels.tolist() == [9, 0, 4]


def test_a_pair_of_files_must_fit(write) -> None:
    images = np.zeros((3, 28, 28))
    assert refusal(pair(write, images, np.arange(2))).endswith("labels: 2 labels for 3 images")
    assert refusal(pair(write, images, np.array([1, 10, 255]))).endswith(
        "label 1 is 10, not in 0 … 9"
    )
    assert refusal(pair(write, np.zeros((3, 28, 27)), np.arange(3))).endswith(
        "images: images of 28 × 27, expected 28 × 28"
    )


@pytest.fixture(scope="module")
def real() -> Dataset:
    return mnist()


@needs_mnist
def test_mnist_has_mean_pixel_0_1307_and_its_class_counts(real: Dataset) -> None:
    assert real.x.shape == (70000, 28, 28, 1)
    assert (real.x.dtype, real.y.dtype) == (np.float32, np.int32)
    assert (real.x.min(), real.x.max()) == (0, 1)
    assert real.x[:60000].mean(dtype=np.float64) == pytest.approx(0.1306604, abs=5e-7)
    assert real.x[:60000].std(dtype=np.float64) == pytest.approx(0.3081078, abs=5e-7)
    train, test = np.bincount(real.y[:60000]), np.bincount(real.y[60000:])
    assert train.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert real.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert (real.name, real.task, real.outputs) == ("mnist", "classification", 10)


@needs_mnist
def test_mnist_tests_on_the_last_10000_and_validates_on_the_5000_before(real: Dataset) -> None:
    assert real.train.tolist() == [list(range(55000))]
    assert real.validation.tolist() == [list(range(55000, 60000))]
    assert real.test.tolist() == [list(range(60000, 70000))]


@needs_mnist
@pytest.mark.parametrize("file", FILES)
def test_one_flipped_bit_of_mnist_is_refused(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in FILES:
        (folder / name).symlink_to(Path(USER_DATA, "mnist", name))
    content = bytearray(gzip.decompress((folder / file).read_bytes()))
    content[-1] ^= 1
    (folder / file).unlink()
    (folder / file).write_bytes(gzip.compress(content, compresslevel=1))
    message = refusal(lambda: mnist(root=str(tmp_path)))
    assert message.startswith(f"{folder / file}: md5 of the uncompressed bytes is ")


@needs_mnist
def test_mnist_in_place_of_fashion_mnist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fashion_mnist").symlink_to(Path(USER_DATA, "mnist"))
    assert "expected f4a8712d" in refusal(lambda: fashion_mnist(root=str(tmp_path)))


@pytest.mark.parametrize("validation", [60000, -1, 0.1])
def test_mnist_cannot_hold_out_all_of_its_training_images(validation) -> None:
    reason = setting_error(lambda: mnist(validation))
    assert reason.endswith(">= 0 and < 60000")


# --- where files are looked for -----------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """$BPEQ_DATA and the user cache, both empty; no proxy between the test and itself."""
    user = tmp_path / "user"
    user.mkdir()
    monkeypatch.setenv("BPEQ_DATA", str(user))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    return user, tmp_path / "cache" / "bpeq"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which this machine serves it."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def remote(address: str, content: bytes = ZIPPED) -> fetch.Remote:
    return fetch.Remote("set", "a.gz", address, "", hashlib.md5(content).hexdigest())


def test_a_file_is_downloaded_once_without_a_word(places, mirror, capfd, caplog) -> None:
    log = pooch.get_logger()
    log.addHandler(caplog.handler)
    level = log.level
    folder, address = mirror
    (folder / "a.gz").write_bytes(ZIPPED)
    path = fetch.find(remote(address), None)
    assert path == places[1] / "set" / "a.gz"
    assert np.array_equal(read_idx(path), IMAGES)
    (folder / "a.gz").unlink()
    assert fetch.find(remote(address), None) == path
    log.removeHandler(caplog.handler)
    assert (caplog.messages, capfd.readouterr(), log.level) == ([], ("", ""), level)


def test_the_users_folder_comes_before_the_cache(places) -> None:
    user, cache = places
    for base in (cache, user):
        (base / "set").mkdir(parents=True)
        (base / "set" / "a.gz").write_bytes(ZIPPED)
        assert fetch.find(remote("http://127.0.0.1:9/"), None) == base / "set" / "a.gz"


def test_a_download_with_the_wrong_checksum_is_not_kept(places, mirror) -> None:
    folder, address = mirror
    (folder / "a.gz").write_bytes(b"<html>log in to the hotel's network</html>")
    message = refusal(lambda: fetch.find(remote(address), None))
    assert "failed (the checksum of what arrived is wrong)" in message
    assert list((places[1] / "set").iterdir()) == []


def test_a_failed_download_says_where_files_belong(places, mirror) -> None:
    user, cache = places
    message = refusal(lambda: fetch.find(remote(mirror[1]), None))
    assert message == (
        f"a.gz is missing: looked for {user}/set/a.gz and {cache}/set/a.gz, download from "
        f"{mirror[1]} failed (HTTPError); set BPEQ_DATA to the folder that holds set/a.gz"
    )


@pytest.mark.parametrize("root", [True, False])
def test_an_uncompressed_file_beside_a_missing_one_is_read(places, root: bool) -> None:
    user, _ = places
    (user / "set").mkdir()
    (user / "set" / "a").write_bytes(SOUND)
    path = fetch.find(remote("http://127.0.0.1:9/"), str(user) if root else None)
    assert path == user / "set" / "a"
    assert np.array_equal(read_idx(path), IMAGES)
    (user / "set" / "a.gz").write_bytes(ZIPPED)
    assert fetch.find(remote("http://127.0.0.1:9/"), str(user)) == user / "set" / "a.gz"


def test_an_unset_bpeq_data_is_not_a_place(places, mirror, monkeypatch) -> None:
    for value in (None, ""):
        monkeypatch.delenv("BPEQ_DATA") if value is None else monkeypatch.setenv("BPEQ_DATA", value)
        message = refusal(lambda: fetch.find(remote(mirror[1]), None))
        assert f"looked for {places[1]}/set/a.gz, download" in message


def test_a_mirror_that_never_answers_does_not_hang(places, monkeypatch) -> None:
    monkeypatch.setattr(fetch, "_TIMEOUT", (0.2, 0.2))
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert "failed (ReadTimeout)" in refusal(lambda: fetch.find(remote(address), None))
    assert "failed (ConnectionError)" in refusal(lambda: fetch.find(remote(address), None))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("factory", [mnist, fashion_mnist])
def test_a_given_root_is_the_only_place(tmp_path: Path, factory) -> None:
    path = tmp_path / factory.__name__ / FILES[0]
    assert refusal(lambda: factory(root=str(tmp_path))) == (
        f"{path}: no such file (root = {str(tmp_path)!r} is the only place looked in)"
    )


# --- npz ---------------------------------------------------------------------------------------

LABELS = np.arange(40) % 4
INPUTS = np.random.default_rng(0).normal(size=(40, 3))
OWN = {
    "x_train": INPUTS[:30],
    "y_train": LABELS[:30],
    "x_test": INPUTS[30:],
    "y_test": LABELS[30:],
}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    def save(**arrays: np.ndarray) -> str:
        path = tmp_path / "mine.npz"
        np.savez(path, **arrays)
        return str(path)

    return save


def test_npz_labels_make_a_stratified_classification(save) -> None:
    data = npz(save(x=INPUTS, y=LABELS), validation=0.25, splits=3)
    assert np.array_equal(data.x, INPUTS.astype(np.float32))
    assert np.array_equal(data.y, LABELS)
    assert (data.x.dtype, data.y.dtype) == (np.float32, np.int32)
    assert (data.name, data.task, data.outputs) == ("mine", "classification", 4)
    assert [part.shape for part in (data.train, data.validation, data.test)] == [
        (3, 24),
        (3, 8),
        (3, 8),
    ]
    for part, each in ((data.train, 6), (data.validation, 2), (data.test, 2)):
        for rows in part:
            assert np.bincount(data.y[rows]).tolist() == [each] * 4
    assert len({rows.tobytes() for rows in data.test}) == 3
    assert npz(save(x=INPUTS, y=LABELS), validation=0.25, splits=3).checksum == data.checksum


@pytest.mark.parametrize("labels", [LABELS.astype(np.uint8), LABELS.astype(">i8"), LABELS > 1])
def test_npz_labels_of_any_whole_type_are_int32(save, labels: np.ndarray) -> None:
    data = npz(save(x=INPUTS, y=labels), validation=0.25)
    assert data.y.dtype == np.int32
    assert np.array_equal(data.y, labels)


def test_npz_labels_in_a_column_or_one_hot_are_the_same_labels(save) -> None:
    plain = npz(save(x=INPUTS, y=LABELS), validation=0.25)
    assert npz(save(x=INPUTS, y=LABELS[:, None]), validation=0.25).checksum == plain.checksum
    for dtype in (np.int64, np.float32, bool):
        path = save(x=INPUTS, y=np.eye(4)[LABELS].astype(dtype))
        data = npz(path, task="classification", validation=0.25)
        assert (data.checksum, data.outputs) == (plain.checksum, 4)
    wide = npz(save(x=INPUTS, y=np.eye(5)[LABELS]), task="classification", validation=0.25)
    assert wide.outputs == 5  # one class without an example


@pytest.mark.parametrize(
    ("targets", "reason"),
    [(LABELS * 1.0, "0.0, 1.0, 2.0"), (LABELS[:, None] * 1.0, "0.0"), (np.eye(4)[LABELS], "one-h")],
    ids=["floats", "column", "one-hot"],
)
def test_npz_floats_that_look_like_labels_are_named(save, targets, reason: str) -> None:
    path = save(x=INPUTS, y=targets)
    with pytest.warns(Caution, match=f"y holds {reason}.* set task = 'classification'"):
        assert npz(path).task == "regression"
    assert npz(path, task="regression").task == "regression"  # an error if it warned


def test_npz_floats_are_regression_targets(save) -> None:
    path = save(x=INPUTS, y=LABELS / 2)
    data = npz(path, test=0.25, validation=0)
    assert (data.task, data.outputs, data.y.shape, data.unit) == ("regression", 1, (40, 1), 1.0)
    assert np.array_equal(data.y[:, 0], LABELS / 2)
    assert (data.train.shape, data.validation.shape, data.test.shape) == ((1, 30), (1, 0), (1, 10))
    assert npz(save(x=INPUTS, y=INPUTS)).outputs == 3


def test_npz_task_overrides_what_auto_would_take(save) -> None:
    assert npz(save(x=INPUTS, y=LABELS), task="regression").y.dtype == np.float32
    assert npz(save(x=INPUTS, y=LABELS * 1.0), task="classification", validation=0).outputs == 4
    binary = npz(save(x=INPUTS, y=LABELS % 2), task="binary")
    assert (binary.task, binary.outputs, binary.y.shape) == ("binary", 1, (40, 1))
    assert binary.y[binary.test[0]].sum() == 4  # stratified: half of 8
    bits = np.stack([LABELS % 2, LABELS // 2], 1)
    assert npz(save(x=INPUTS, y=bits), task="binary").outputs == 2


def test_npz_images_keep_their_axes_and_values(save) -> None:
    images = np.arange(40 * 12, dtype=np.uint8).reshape(40, 2, 6, 1)
    assert np.array_equal(npz(save(x=images, y=LABELS), validation=0).x, images)


def test_npz_keeps_the_split_that_the_file_brings(save) -> None:
    data = npz(save(**OWN), validation=0.2)
    assert data.test.tolist() == [list(range(30, 40))]
    assert (data.train.shape, data.validation.shape) == ((1, 24), (1, 6))
    held = npz(save(**OWN, x_validation=INPUTS[:5] + 9, y_validation=LABELS[:5]))
    assert held.train.tolist() == [list(range(30))]
    assert held.validation.tolist() == [list(range(30, 35))]
    assert np.array_equal(held.x[30:35], (INPUTS[:5] + 9).astype(np.float32))
    assert held.test.tolist() == [list(range(35, 45))]


def test_npz_classes_allow_one_without_examples(save) -> None:
    path = save(x=INPUTS, y=np.where(LABELS == 2, 3, LABELS))
    assert npz(path, classes=5, validation=0.25).outputs == 5
    assert "labels: class 2 has no examples though labels run up to 3" in refusal(lambda: npz(path))


def changed(array: np.ndarray, index: object, value: object) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


PLAIN = {"x": INPUTS, "y": LABELS}
FLOATS = {"x": INPUTS, "y": LABELS / 2}
BAD_ARRAYS = {
    "nan": ({**PLAIN, "x": changed(INPUTS, (3, 1), np.nan)}, "x[3, 1] is nan, not a finite number"),
    "inf": ({**PLAIN, "x": changed(INPUTS, (3, 1), -np.inf)}, "x[3, 1] is -inf, not a finite"),
    "large": ({**PLAIN, "x": changed(INPUTS, (3, 1), 1e39)}, "x[3, 1] is 1e+39, too large for fl"),
    "y nan": ({**FLOATS, "y": changed(INPUTS, (2, 0), np.nan)}, "y[2, 0] is nan, not a finite"),
    "negative": ({**PLAIN, "y": changed(LABELS, 7, -1)}, "y[7] is -1, negative: labels are 0, 1"),
    "gap": (
        {**PLAIN, "y": LABELS * 2},
        "labels: class 1 has no examples though labels run up to 6",
    ),
    "from 1": ({**PLAIN, "y": LABELS + 1}, "labels: class 0 has no examples though labels run up"),
    "wrapping": (
        {**PLAIN, "y": changed(LABELS, 7, 2**40)},
        "y[7] is 1099511627776, not below 2147",
    ),
    "unsigned": (
        {**PLAIN, "y": changed(LABELS.astype(np.uint64), 7, 2**64 - 1)},
        "y[7] is 18446744073709551615, not below",
    ),
    "one class": ({**PLAIN, "y": LABELS * 0}, "labels: every label is 0; a classification needs"),
    "lengths": ({**PLAIN, "y": LABELS[:-1]}, "y has 39 rows, x has 40"),
    "empty": ({"x": INPUTS[:0], "y": LABELS[:0]}, "x has shape (0, 3): it is empty"),
    "flat": ({**PLAIN, "x": LABELS}, "x has shape (40,), [n, ...] is needed"),
    "scalar": ({**PLAIN, "y": np.array(3)}, "y has shape (), [n] or [n, outputs] is needed"),
    "complex": ({**PLAIN, "x": INPUTS * 1j}, "x holds complex128, not real numbers"),
    "text": ({**PLAIN, "x": INPUTS.astype(str)}, "x holds <U32, not real numbers"),
    "names": ({**PLAIN, "y": LABELS.astype(str)}, "y holds <U21 of shape (40,): labels are whole"),
    "columns": ({**PLAIN, "y": LABELS[:, None] * [1, 2]}, "y holds int64 of shape (40, 2): labels"),
    "cube": ({**PLAIN, "y": INPUTS[:, :, None]}, "targets of shapes [(3, 1)] a row, [outputs] is"),
    "objects": (
        {**PLAIN, "y": LABELS.astype(object)},
        "y cannot be read: Object arrays cannot be loaded",
    ),
    "missing": ({"x": INPUTS}, "missing y; it holds x"),
    "none": (
        {"inputs": INPUTS},
        "missing x_test, x_train, y_test, y_train (or x and y); it holds in",
    ),
    "partner": (
        {**OWN, "x_validation": INPUTS},
        "missing y_validation (or x and y); it holds x_te",
    ),
    "extra": ({**PLAIN, "x_val": INPUTS}, "unexpected x_val beside x, y"),
    "both": ({**PLAIN, **OWN}, "unexpected x_test, x_train, y_test, y_train beside x, y"),
    "test nan": (
        {**OWN, "x_test": changed(INPUTS[30:], (3, 1), np.nan)},
        "x_test[3, 1] is nan, not a finite number",
    ),
    "test shape": (
        {**OWN, "x_test": INPUTS[30:, :2]},
        "examples of different shapes: train (30, 3)",
    ),
    "test width": (
        {**OWN, "y_train": INPUTS[:30], "y_test": INPUTS[30:, :2]},
        "targets of shapes [(2,), (3,)] a row, [outputs] is needed",
    ),
    "test kind": (
        {**OWN, "y_test": LABELS[30:] / 2},
        "y is whole numbers in one part and floats in",
    ),
    "few": (
        {"x": INPUTS[:2], "y": LABELS[:2]},
        "test = 0.2 splits 2 examples into 1 and 1: class 0",
    ),
    "rare": (
        {**PLAIN, "y": changed(LABELS, 0, 4)},
        "test = 0.2 splits 40 examples into 32 and 8: class 4 has one example, a stratified split",
    ),
    "small": (PLAIN, "validation = 0.1 splits 32 examples into 29 and 3: fewer than the 4 classes"),
    "one row": (
        {"x": INPUTS[:1], "y": INPUTS[:1]},
        "test = 0.2 splits 1 examples into 0 and 1: no",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_npz_says_what_is_wrong(save, case: str) -> None:
    arrays, reason = BAD_ARRAYS[case]
    path = save(**arrays)
    assert refusal(lambda: npz(path)).startswith(f"{path}: {reason}")


def test_npz_names_a_label_that_the_task_does_not_allow(save) -> None:
    path = save(x=INPUTS, y=LABELS)
    assert refusal(lambda: npz(path, classes=3)) == (
        f"{path}: y[3] is 3, not below 3, the number of classes"
    )
    assert refusal(lambda: npz(path, task="binary")).endswith(
        "y[2] is 2: a binary target is 0 or 1"
    )
    path = save(x=INPUTS, y=LABELS / 2)
    assert refusal(lambda: npz(path, task="classification")).startswith(
        f"{path}: y[1] is 0.5, not a whole number"
    )
    path = save(x=INPUTS, y=LABELS[:, None] * [1, 2])
    assert refusal(lambda: npz(path, task="classification")).startswith(
        f"{path}: y has shape (40, 2): labels are one a row"
    )


def test_npz_settings_that_do_not_go_with_the_file_are_refused(save) -> None:
    own = save(**OWN)
    assert "splits = 2: " in setting_error(lambda: npz(own, splits=2))
    assert "test = 0.3: " in setting_error(lambda: npz(own, test=0.3))
    own = save(**OWN, x_validation=INPUTS, y_validation=LABELS)
    assert "validation = 0.3: " in setting_error(lambda: npz(own, validation=0.3))
    floats = save(**FLOATS)
    assert "only for classification" in setting_error(lambda: npz(floats, classes=3))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"task": "labels"}, "must be 'auto' | 'classification' | 'binary' | 'regression'"),
        ({"splits": 0}, "must be a whole number >= 1"),
        ({"classes": 1}, "must be a whole number >= 2"),
        ({"classes": 2.0}, "must be a whole number >= 2"),
        ({"validation": 1.0}, "must be a number >= 0 and < 1"),
        ({"test": -0.1}, "must be a number >= 0 and < 1"),
    ],
)
def test_npz_settings_out_of_range_are_refused(save, setting, reason: str) -> None:
    path = save(x=INPUTS, y=LABELS)
    assert reason in setting_error(lambda: npz(path, **setting))


def test_npz_refuses_files_that_are_none(tmp_path: Path, save, write) -> None:
    path = str(tmp_path / "absent.npz")
    assert refusal(lambda: npz(path)) == f"{path}: no such file"
    assert "cannot be read: Is a directory" in refusal(lambda: npz(str(tmp_path)))
    for name, content in {"text": b"a,b", "empty": b"", "zip": b"PK\3\4 and so on"}.items():
        path = str(write(name, content))
        assert refusal(lambda path=path: npz(path)) == f"{path}: not an .npz file"
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "text")
    path = str(tmp_path / "other.zip")
    assert refusal(lambda: npz(path)) == f"{path}: readme.txt is not an array"
    np.save(tmp_path / "one.npy", INPUTS)
    assert "a single .npy array" in refusal(lambda: npz(str(tmp_path / "one.npy")))
    whole = Path(save(x=INPUTS, y=LABELS)).read_bytes()
    half = str(write("half.npz", whole[: len(whole) // 2]))
    assert refusal(lambda: npz(half)) == f"{half}: not an .npz file"
    spot = whole.index(INPUTS[5].tobytes())
    spoilt = str(write("spoilt.npz", whole[:spot] + b"\xff" + whole[spot + 1 :]))
    assert refusal(lambda: npz(spoilt)).startswith(f"{spoilt}: x cannot be read: Bad CRC-32")


def test_npz_never_unpickles(tmp_path: Path, write) -> None:
    marker = tmp_path / "ran"

    class Touch:
        def __reduce__(self):
            return (Path.touch, (marker,))

    path = str(write("evil.npz", pickle.dumps(Touch())))
    assert refusal(lambda: npz(path)) == f"{path}: not an .npz file"
    assert not marker.exists()


# --- csv ---------------------------------------------------------------------------------------

ROWS = [f"{i}, {i / 4}, {i % 2}" for i in range(20)]


@pytest.fixture
def sheet(write) -> Callable[..., str]:
    def sheet(*lines: str, encoding: str = "utf-8") -> str:
        return str(write("mine.csv", "\n".join([*lines, ""]).encode(encoding)))

    return sheet


def test_csv_labels_are_the_last_column(sheet) -> None:
    data = csv(sheet("width,height,kind", *ROWS))
    assert (data.name, data.task, data.outputs) == ("mine", "classification", 2)
    assert np.array_equal(data.x, np.arange(20)[:, None] * [1, 0.25])
    assert (data.x.dtype, data.y.dtype) == (np.float32, np.int32)
    assert data.x.flags.c_contiguous
    assert data.y.tolist() == [0, 1] * 10
    assert data.test.shape == (1, 4)
    assert np.bincount(data.y[data.test[0]]).tolist() == [2, 2]


def test_csv_target_names_another_column(sheet) -> None:
    data = csv(sheet("width,height,kind", *ROWS), "height", splits=2)
    assert (data.task, data.outputs, data.y.shape) == ("regression", 1, (20, 1))
    assert np.array_equal(data.x, np.stack([np.arange(20), np.arange(20) % 2], 1))
    assert np.array_equal(data.y[:, 0], np.arange(20) / 4)
    assert data.test.shape == (2, 4)


def test_csv_class_names_are_numbered_in_sorted_order(sheet) -> None:
    names = ["pear", "apple", "Zebra", "pear"] * 3
    data = csv(
        sheet("x,kind", *(f"{i},{name}" for i, name in enumerate(names))), validation=0.4, test=0.25
    )
    assert (data.task, data.outputs) == ("classification", 3)
    assert data.y.tolist() == [2, 1, 0, 2] * 3


def test_csv_tasks(sheet) -> None:
    path = sheet("width,height,kind", *ROWS)
    assert csv(path, task="regression").y.dtype == np.float32
    binary = csv(path, task="binary")
    assert (binary.task, binary.y.shape) == ("binary", (20, 1))
    assert csv(path, classes=3, validation=0.2).outputs == 3
    assert csv(sheet("a,b", *(f"{i},{i % 2}.5" for i in range(20)))).task == "regression"


def test_csv_reads_quotes_blank_lines_and_byte_order_marks(sheet) -> None:
    path = sheet('"the width, in cm", kind', "", *ROWS_2, encoding="utf-8-sig")
    data = csv(path, "kind")
    assert data.x[:, 0].tolist() == list(range(20))


ROWS_2 = [f'"{i}", {i % 2}' for i in range(20)]
HEAD = "width,height,kind"
BAD_SHEETS: dict[str, tuple[list[str], str]] = {
    "empty": ([], "the file is empty"),
    "only header": ([HEAD], "a header but no rows"),
    "no header": (ROWS, "line 1 is all numbers: a header with column names is needed"),
    "semicolons": (["a;b", "1;2"], "one column, 'a;b': an input and a target are needed"),
    "no name": (["a,,c", "1,2,3"], "column 2 has no name in the header"),
    "twice": (["a,b, a", "1,2,3"], "two columns are named 'a'"),
    "short row": ([HEAD, ROWS[0], "1,2"], "line 3 has 2 cells, the header 3"),
    "long row": ([HEAD, ROWS[0], "", "1,2,3,4"], "line 4 has 4 cells, the header 3"),
    "word": ([HEAD, ROWS[0], "1,tall,0"], "line 3, column 'height' is 'tall', not a number"),
    "underscore": ([HEAD, ROWS[0], "1,1_0,0"], "line 3, column 'height' is '1_0', not a number"),
    "hole": ([HEAD, ROWS[0], "1, ,0"], "line 3, column 'height' is empty"),
    "nan": ([HEAD, ROWS[0], "1,nan,0"], "line 3, column 'height' is nan, not a finite number"),
    "inf": ([HEAD, ROWS[0], "1,-inf,0"], "line 3, column 'height' is -inf, not a finite number"),
    "large": ([HEAD, ROWS[0], "1,1e39,0"], "line 3, column 'height' is 1e+39, too large for fl"),
    "target hole": ([HEAD, ROWS[0], "1,2,"], "line 3, column 'kind' is empty"),
    "target mix": (
        [HEAD, ROWS[0], "1,2,cat"],
        "line 3, column 'kind' is 'cat', a name, where others are numbers",
    ),
    "target nan": ([HEAD, *ROWS, "1,2,nan"], "line 22, column 'kind' is nan, not a finite number"),
    "negative": ([HEAD, ROWS[0], "1,2,-1"], "line 3, column 'kind' is -1.0, negative: labels are"),
    "gap": ([HEAD, ROWS[0], "1,2,2"], "labels: class 1 has no examples though labels run up to 2"),
    "quote": ([HEAD, '"1"2,3,4'], "line 2: not CSV: "),
    "few": ([HEAD, *ROWS[:2]], "test = 0.2 splits 2 examples into 1 and 1: class 0 has one"),
}


@pytest.mark.parametrize("case", BAD_SHEETS)
def test_csv_says_what_is_wrong(sheet, write, case: str) -> None:
    lines, reason = BAD_SHEETS[case]
    path = sheet(*lines) if lines else str(write("mine.csv", b""))
    assert refusal(lambda: csv(path)).startswith(f"{path}: {reason}")


def test_csv_blames_the_cell_that_is_empty_or_of_the_rarer_kind(sheet) -> None:
    names = [f"1,2,{name}" for name in ("cat", "dog", "cat")]
    for task in ("auto", "classification"):
        for cell, reason in (("", "is empty"), ("7", "is '7', a number, where others are names")):
            path = sheet(HEAD, *names, f"1,2,{cell}")
            message = refusal(lambda path=path, task=task: csv(path, task=task))
            assert message == f"{path}: line 5, column 'kind' {reason}"


def test_csv_floats_that_look_like_labels_are_named(sheet) -> None:
    path = sheet(HEAD, *(f"1,{i},{i % 3}.0" for i in range(30)))
    with pytest.warns(Caution, match="column 'kind' holds 0.0, 1.0, .* task = 'classification'"):
        assert csv(path).task == "regression"
    assert csv(path, task="classification", validation=0.2).outputs == 3


def test_csv_labels_that_the_task_does_not_allow_are_refused(sheet) -> None:
    path = sheet(HEAD, *ROWS, "1,2,2.5")
    assert refusal(lambda: csv(path, task="classification")).startswith(
        f"{path}: line 22, column 'kind' is 2.5, not a whole number"
    )
    assert refusal(lambda: csv(path, task="binary")) == (
        f"{path}: line 22, column 'kind' is 2.5: a binary target is 0 or 1"
    )
    path = sheet(HEAD, *ROWS, "1,2,5")
    assert refusal(lambda: csv(path, classes=3)).startswith(
        f"{path}: line 22, column 'kind' is 5.0, not below 3"
    )
    path = sheet(HEAD, "1,2,cat", "1,2,dog")
    assert "is 'cat', not a number" in refusal(lambda: csv(path, task="regression"))


def test_csv_files_that_cannot_be_read_are_refused(tmp_path: Path, write) -> None:
    path = str(tmp_path / "absent.csv")
    assert refusal(lambda: csv(path)) == f"{path}: no such file"
    assert "cannot be read: Is a directory" in refusal(lambda: csv(str(tmp_path)))
    latin = str(write("latin.csv", "größe,b\n1,2\n".encode("latin-1")))
    assert refusal(lambda: csv(latin)).startswith(f"{latin}: not UTF-8 text")


def test_csv_target_that_is_no_column_is_a_wrong_setting(sheet) -> None:
    path = sheet(HEAD, *ROWS)
    assert setting_error(lambda: csv(path, "sort")) == (
        f"csv: target = 'sort': the columns of {path} are 'width', 'height', 'kind'"
    )
    assert "must be a whole number >= 2" in setting_error(lambda: csv(path, classes=1))


@pytest.mark.filterwarnings("ignore::bpeq.types.Caution")
@settings(max_examples=200, deadline=None, derandomize=True)
@given(content=st.binary(max_size=40) | st.text('a1,.\n\r" -\0', max_size=60).map(str.encode))
def test_any_bytes_are_a_table_or_a_data_error(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.any"
    path.write_bytes(content)
    for factory in (csv, npz):
        data = tried(path, lambda factory=factory: factory(str(path), validation=0, test=0))
        assert data is None or np.isfinite(data.x).all()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(position=st.integers(0, 10**6), bits=st.integers(1, 255))
def test_a_damaged_npz_is_its_arrays_or_a_data_error(tmp_path_factory, position, bits) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=INPUTS[:4], y=LABELS[:4])
    content = bytearray(buffer.getvalue())
    content[position % len(content)] ^= bits
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content)
    data = tried(path, lambda: npz(str(path), validation=0, test=0))
    assert data is None or np.array_equal(data.x, INPUTS[:4].astype(np.float32))
