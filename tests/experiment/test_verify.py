"""`bpeq verify`: a run that repeats, and every way in which a folder is not what its run left."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bpeq.cli import signals
from bpeq.runs import manifest as sealing
from bpeq.runs import run_folder

XOR = """\
seed = 3
seeds = 2

[data]
name = "xor"

[network]
layers = ["dense(3)", "tanh", "dense(1)"]

[optimizer]
name = "sgd"
learning_rate = 0.5

[training]
epochs = 4
batch_size = 4
"""
STUDY = """\
import numpy as np
from bpeq import experiment

def run(config, runner, *, spread: float = 0.0):
    inner = experiment.run(config, runner.folder / "inner", resume=runner.resume)
    noise = np.random.default_rng().normal(0, 1) * spread
    return {"loss": inner["metrics"]["test_loss"]["values"], "noise": noise}
"""


@pytest.fixture(scope="module")
def finished(call, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "c.toml").write_text(XOR)
    said = call("run", folder / "c.toml", "--out", folder / "out")
    assert (said.code, said.err) == (0, [])
    return folder / "out"


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the finished run, and no repeat where the files must tell."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "run")
    return Path("run")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_repeats_is_equal_in_every_row_and_bit_and_is_not_touched(call, run):
    before = tree(run)
    said = call("verify", run)
    assert (said.code, said.err) == (0, [])
    assert "run: every file is as its run left it" in said.out
    for words in ("metrics.jsonl", "4 rows", "params.safetensors", "4 leaves", "7 metrics"):
        assert words in said.out
    assert said.out.count("equal") == 3
    assert tree(run) == before
    assert call("verify", run, "--files").out == "run: every file is as its run left it\n"


FILES = [
    *("config.toml", "environment.json", "metrics.jsonl", "params.safetensors", "summary.json"),
    *("report.html", "learning_curves.png"),
    "checkpoints/1-000000004.safetensors",
]


def test_the_manifest_has_every_file(run):
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert found - {".lock"} == {*FILES, "manifest.json"}
    assert set(sealing.read(run)) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_byte_changed_in_any_file_and_any_file_missing_end_with_3_and_its_name(
    call, run, monkeypatch, name
):
    monkeypatch.setattr("bpeq.experiment.train.run", None)  # found without a repeat
    content = bytearray((run / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run / name).write_bytes(bytes(content))
    line = f"bpeq: run: is not as its run left it: {name}"
    assert call("verify", run)[::2] == (3, [f"{line} was changed"])
    (run / name).unlink()
    assert call("verify", run)[::2] == (3, [f"{line} is missing"])


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "run/manifest.json: is missing: nothing vouches for the files"),
        ("{", "run/manifest.json: cannot read: Expecting property name"),
        ("{}", "run/manifest.json: is damaged: it has no checksums"),
        ('{"sha256": {"summary.json": 3}}', "run/manifest.json: is damaged: it has no checksums"),
        ('{"sha256": {"summary.json": "3"}}', "run: is not as its run left it: summary.json was"),
    ],
)
def test_a_manifest_that_is_missing_or_damaged_ends_with_3(call, run, content, line):
    path = run / "manifest.json"
    path.unlink() if content is None else path.write_text(content)
    said = call("verify", run)
    assert (said.code, len(said.err)) == (3, 1)
    assert said.err[0].startswith(f"bpeq: {line}")


@pytest.mark.parametrize("name", ["metrics.jsonl", "params.safetensors"])
def test_a_result_that_the_manifest_has_not_is_vouched_for_by_nothing(call, run, name):
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["sha256"][name]
    (run / "manifest.json").write_text(json.dumps(manifest))
    line = f"bpeq: run: is not as its run left it: {name} is not in manifest.json"
    assert call("verify", run, "--files")[::2] == (3, [line])


def forge(run: Path, what: str) -> str:
    """Changes one figure and the manifest with it; what verify must then say."""
    if what == "metrics.jsonl":
        rows = [json.loads(line) for line in (run / what).read_text().splitlines()]
        old, rows[2]["values"]["test_loss"][1] = rows[2]["values"]["test_loss"], 0.125
        (run / what).write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = f"row 3: values.test_loss is {old}, "
    elif what == "params.safetensors":
        arrays = load_file(run / what)
        arrays["2.b"][0] = np.nextafter(arrays["2.b"][0], np.float32(9))
        save_file(arrays, run / what)
        said = "2.b: 1 of 2 numbers differ"
    else:
        summary = json.loads((run / what).read_text())
        summary["metrics"]["solved"]["mean"] = 0.75
        (run / what).write_text(json.dumps(summary))
        said = "solved is {'mean': 0.75, "
    sealing.write_manifest(run)
    return f"bpeq: run: its repeat differs: {what}: {said}"


@pytest.mark.parametrize("what", ["metrics.jsonl", "params.safetensors", "summary.json"])
def test_a_forged_figure_is_found_by_the_repeat_and_ends_with_4(call, run, what):
    start = forge(run, what)
    said = call("verify", run)
    assert (said.code, len(said.err)) == (4, 1)
    assert said.err[0].startswith(start)
    assert said.out.count("equal") == 2


def test_rows_that_are_missing_are_counted(call, run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:3]))
    sealing.write_manifest(run)
    said = call("verify", run)
    line = "bpeq: run: its repeat differs: metrics.jsonl: 4 rows in the repeat"
    assert (said.code, said.err) == (4, [line])


def test_a_report_written_anew_is_taken_into_the_manifest_and_nothing_else_is(call, run):
    (run / "summary.json").write_text((run / "summary.json").read_text().replace("xor", "xxx"))
    assert call("report", run).code == 0
    said = call("verify", run, "--files")
    line = "bpeq: run: is not as its run left it: summary.json was changed"
    assert (said.code, said.err) == (3, [line])


def test_other_versions_are_told_before_the_repeat(call, run, monkeypatch):
    now = run_folder.environment()
    there = {**now, "versions": {**now["versions"], "jax": "9.9"}}
    monkeypatch.setattr(run_folder, "environment", lambda: there)
    said = call("verify", run)
    ours = now["versions"]["jax"]
    line = f"bpeq: run: was run elsewhere, bits may differ: jax {ours} then, 9.9 now"
    assert (said.code, said.err) == (0, [line])


def test_a_signal_stops_the_repeat_and_leaves_the_folder(call, run, monkeypatch):
    before = tree(run)
    monkeypatch.setattr(signals, "asked_to_stop", lambda: signal.SIGINT)
    said = call("verify", run)
    line = "bpeq: run: was not verified: the repeat was stopped; the folder is as it was"
    assert (said.code, said.err) == (130, [line])
    assert tree(run) == before


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        (("summary.json", "manifest.json"), "run: its run is not finished: bpeq run run --resume"),
        (None, "nowhere: holds no run"),
    ],
)
def test_what_is_no_finished_run_is_refused(call, run, missing, line):
    for name in missing or ():
        (run / name).unlink()
    said = call("verify", run if missing else "nowhere")
    assert (said.code, said.err) == (2, [f"bpeq: {line}"])


def test_a_study_is_repeated_with_the_runs_inside_it(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("study.py").write_text(STUDY)
    Path("c.toml").write_text(f'experiment = "study.py"\n{XOR}')
    assert call("run", "c.toml", "--out", "out").code == 0
    said = call("verify", "out")
    assert (said.code, said.err) == (0, [])
    assert "inner/params.safetensors" in said.out
    assert call("run", "c.toml", "--out", "loose", "--set", "study.spread=1.0").code == 0
    said = call("verify", "loose")
    assert (said.code, len(said.err)) == (4, 1)
    assert said.err[0].startswith("bpeq: loose: its repeat differs: summary.json: noise is {")
