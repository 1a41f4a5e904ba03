"""Where a loop stands, on disk: its carry as safetensors, vouched for by a JSON manifest."""

from __future__ import annotations

import glob
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bpeq.runs import host_arrays, run_folder
from bpeq.runs.metrics_log import Journal, Values, canonical
from bpeq.types import Caution, DataError

FOLDER = "checkpoints"


class Point(NamedTuple):
    """Between two strides of a loop: all that the next one needs, in host memory.

    done: turns done. carry: the loop's, random keys as their data. values: the last measured.
    row: what the last row says of its place, such as its epoch. mark: how much of the journal there
    is. start: where in the journal the loop's own rows begin, in bytes.
    """

    done: int
    carry: Any
    values: Values
    row: dict[str, Any]
    mark: dict[str, Any]
    start: int


class Checkpoints:
    """The checkpoints of one loop of a run: PART-TURNS.safetensors, and beside each its .json.

    folder: where they are. part: the loop's name, its place among the run's loops before it.
    identity: what must be the same in the run that goes on: its config's checksum, its loop's
    length. keys: the loop's random keys, which must be the same too.
    """

    def __init__(self, folder: Path, part: str, identity: dict[str, Any], keys: list[Any]) -> None:
        self.folder, self.part, self.identity = folder, part, identity
        self.keys = {f"key.{i}": host_arrays.data(key) for i, key in enumerate(keys)}
        self.saved, self.told = -1, False

    def path(self, done: int) -> Path:
        return self.folder / f"{self.part}-{done:09d}.safetensors"

    def save(self, point: Point, seconds: dict[str, float]) -> Path:
        """Writes a point, manifest last, and then lets go of all but this and the one before.

        Raises:
          DataError: the disk is full or cannot be written; those that there are stay.
        """
        from safetensors.numpy import save

        path = self.path(point.done)
        if point.done == self.saved:
            return path
        arrays = jax.device_get(self.keys) | host_arrays.named("carry", point.carry)
        arrays |= {f"values.{name}": v for name, v in point.values.items()}
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        content = save({name: host_arrays.packed(array) for name, array in arrays.items()})
        manifest = {
            "format": 1,
            "part": self.part,
            "done": point.done,
            **self.identity,
            "row": point.row,
            "metrics": {**point.mark, "start": point.start},
            "seconds": seconds,
            "sha256": hashlib.sha256(content).hexdigest(),
            "arrays": {n: [a.dtype.name, list(a.shape)] for n, a in arrays.items()},
            "environment": run_folder.environment(),
        }
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot write: {error.strerror or error}") from error
        run_folder.write_bytes(path, content)
        try:
            run_folder.write_json(
                path.with_suffix(".json"), manifest | {"own_sha256": _sum(manifest)}
            )
        except DataError:
            path.unlink(missing_ok=True)  # half a checkpoint only fills the disk
            raise
        self.saved = point.done
        self._keep(2)
        return path

    def finish(self) -> None:
        """Lets go of all but the newest."""
        self._keep(1)

    def newest(
        self, carry: Any, journal: Journal
    ) -> tuple[Point, dict[str, float], list[dict[str, Any]]] | None:
        """The newest good point, the seconds spent until it, and the loop's rows, if there is one.

        The journal then stands where it stood there. Damaged ones are told of, and removed.

        Args:
          carry: the template: as the loop starts, whose leaves a checkpoint's must be like.

        Raises:
          DataError: a checkpoint of another run or network; metrics.jsonl was changed.
        """
        bad: dict[Path, str] = {}
        found: tuple[Point, dict[str, float], list[dict[str, Any]]] | None = None
        edited = False
        for path in self._all():
            try:
                manifest, arrays = self._read(path)
                self._check(path, manifest, arrays, carry)
            except _Damaged as error:
                bad[path] = str(error)
                continue
            if not journal.go_to(manifest["metrics"]):
                bad[path], edited = f"{journal.path} was changed", True
                continue
            point = self._point(manifest, arrays, carry)
            try:
                rows = [canonical(r, point.values) for r in journal.rows(point.start)]
            except (ValueError, KeyError, TypeError) as error:
                bad[path] = f"its manifest is damaged: {type(error).__name__} in {journal.path}"
                continue
            self.saved = point.done
            found = point, manifest["seconds"], rows
            self._tell_environment(manifest)
            break
        if edited and found is None:
            raise DataError(
                f"{journal.path}: was changed: its rows are not those that the checkpoints in "
                f"{self.folder} go on from; bring it back, or name a new folder"
            )
        if bad:
            then = f"goes on from {self.path(found[0].done).name}" if found else "starts anew"
            said = "; ".join(f"{path}: {why}" for path, why in bad.items())
            warnings.warn(f"{said}: the run {then}", Caution, stacklevel=2)
            self.told = True
            for path in bad:
                _remove(path)
        return found

    def _all(self) -> list[Path]:
        """Newest first; also those of which only one of the two files is there."""
        places = {
            p.with_suffix(".safetensors") for p in self.folder.glob(f"{glob.escape(self.part)}-*")
        }
        mine = [p for p in places if p.stem[len(self.part) + 1 :].isdigit()]
        return sorted(mine, key=lambda p: int(p.stem[len(self.part) + 1 :]), reverse=True)

    def _keep(self, count: int) -> None:
        for path in self._all()[count:]:
            _remove(path)

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        from safetensors.numpy import load

        try:
            text, content = path.with_suffix(".json").read_text(), path.read_bytes()
            manifest = json.loads(text)
            if manifest.pop("own_sha256", None) != _sum(manifest):
                raise _Damaged("its manifest is damaged: its own_sha256 is that of another")
            for key, kind in _KINDS.items():
                if not isinstance(manifest[key], kind):
                    raise _Damaged(f"its manifest is damaged: its {key} is no {kind.__name__}")
            if (manifest["format"], self.path(manifest["done"])) != (1, path):
                raise _Damaged("its manifest is damaged: it is of another checkpoint")
            if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
                raise _Damaged("is damaged: its sha256 is not its manifest's")
            arrays = load(content)
            told = manifest["arrays"].items()
            arrays = {n: host_arrays.unpacked(arrays[n], kind, shape) for n, (kind, shape) in told}
            size, start, _ = (manifest["metrics"][key] for key in ("bytes", "start", "sha256"))
            if {type(size), type(start)} != {int} or not 0 <= start <= size:
                raise _Damaged("its manifest is damaged: it has no place in metrics.jsonl")
            if not all(isinstance(spent, int | float) for spent in manifest["seconds"].values()):
                raise _Damaged("its manifest is damaged: its seconds are no numbers")
            return manifest, arrays
        except FileNotFoundError as error:
            raise _Damaged(f"is incomplete: {Path(error.filename).name} is missing") from error
        except OSError as error:
            raise _Damaged(f"cannot be read: {error.strerror or error}") from error
        except _Damaged:
            raise
        except Exception as error:  # whatever a damaged file makes of the parsers
            raise _Damaged(f"its manifest is damaged: {type(error).__name__}") from error

    def _check(self, path: Path, manifest: Any, arrays: dict[str, np.ndarray], carry: Any) -> None:
        for key, ours in self.identity.items():
            if manifest.get(key) != ours:
                raise DataError(f"{path}: is of another run: its {key} is not this one's")
        own = jax.device_get(self.keys)
        wanted = own | {
            n: a for n, a in host_arrays.named("carry", host_arrays.specs(carry)).items()
        }
        given = {n for n in arrays if not n.startswith("values.")}
        if given != set(wanted):
            odd = sorted(given ^ set(wanted))
            raise DataError(f"{path}: holds another network: {', '.join(odd[:4])} do not match")
        for name, leaf in wanted.items():
            found = arrays[name]
            if found.shape != leaf.shape or found.dtype != leaf.dtype:
                raise DataError(
                    f"{path}: {name} is {found.dtype}{list(found.shape)}, the config makes "
                    f"{leaf.dtype}{list(leaf.shape)}"
                )
        for place, key in own.items():
            if not np.array_equal(arrays[place], key):
                raise DataError(f"{path}: is of a run with other random keys")

    def _point(self, manifest: Any, arrays: dict[str, np.ndarray], carry: Any) -> Point:
        leaves = [arrays[name] for name in host_arrays.named("carry", host_arrays.specs(carry))]
        values = {n[7:]: a for n, a in arrays.items() if n.startswith("values.")}
        metrics = manifest["metrics"]
        return Point(
            manifest["done"],
            jax.tree.unflatten(jax.tree.structure(carry), leaves),
            values,
            manifest["row"],
            {k: metrics[k] for k in ("bytes", "sha256")},
            metrics["start"],
        )

    def _tell_environment(self, manifest: dict[str, Any]) -> None:
        said = run_folder.differences(manifest["environment"], run_folder.environment())
        if said:
            warnings.warn(
                f"{self.folder}: the run began elsewhere, and may differ from one never "
                f"interrupted in its last bits: {said}",
                Caution,
                stacklevel=2,
            )


_KINDS = {"format": int, "part": str, "done": int, "row": dict, "metrics": dict, "seconds": dict}
_KINDS |= {"sha256": str, "arrays": dict, "environment": dict}
"""What a manifest must have, in which form, beside its identity."""


class _Damaged(Exception):
    """A checkpoint that cannot be used; says why."""


def _sum(manifest: dict[str, Any]) -> str:
    """Of a manifest as it is read back: what vouches for the arrays must not be damaged itself."""
    return hashlib.sha256(
        json.dumps(run_folder.plain(manifest), sort_keys=True).encode()
    ).hexdigest()


def _remove(path: Path) -> None:
    """The manifest first: without it what is left counts as incomplete."""
    for each in (path.with_suffix(".json"), path):
        each.unlink(missing_ok=True)
