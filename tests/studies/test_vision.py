"""The vision study's smoke setting."""

import json

import pytest


@pytest.mark.long  # a minute of compiling
def test_smoke(call, studies, tmp_path):
    """Two epochs of digits: backprop is already far ahead of every control, alignment is not."""
    config = studies.parent / "configs" / "vision.toml"
    said = call("run", config, "--seeds", 1, "--set", "study.smoke=true", "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, [])
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    mean = {name: metric["mean"] for name, metric in found.items()}
    assert mean["test_error"] < 0.2 < 0.5 < mean["test_error_frozen_hidden"]
    assert mean["test_error"] < mean["test_error_feedback_alignment"]
    assert (tmp_path / "out" / "vision.png").stat().st_size > 10_000
