"""The training error over training: logged on request, and nothing else moves."""

from __future__ import annotations

import json

from safetensors.numpy import load_file

CONFIG = """\
[data]
name = "xor"

[network]
layers = ["dense(3)", "tanh", "dense(1)"]

[rule]
name = "backprop"

[optimizer]
name = "sgd"
learning_rate = 0.5

[training]
epochs = 3
batch_size = 2
"""


def test_evaluate_train_logs_the_training_error_and_moves_nothing_else(call, tmp_path, monkeypatch):
    monkeypatch.setattr("bpeq.report.write_report", lambda folder: folder)
    (tmp_path / "c.toml").write_text(CONFIG)
    rows, params = [], []
    for name in ("false", "true"):
        asked = ["--set", f"training.evaluate_train={name}"]
        ended = call("run", tmp_path / "c.toml", "--out", tmp_path / name, *asked)
        assert ended.code == 0, ended
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows.append([json.loads(line) for line in lines])
        params.append(load_file(tmp_path / name / "params.safetensors"))
        final = json.loads((tmp_path / name / "summary.json").read_text())["metrics"]
    assert all((a == params[1][leaf]).all() for leaf, a in params[0].items())
    for without, logged in zip(*rows, strict=True):
        assert "train_error" not in without["values"]
        assert without["train_loss"] == logged["train_loss"]  # still that of the updates
    assert rows[1][-1]["values"]["train_error"] == final["train_error"]["values"]
