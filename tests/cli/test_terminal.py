"""Any locale, any width of the terminal, and a signal at the very end of a command."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bpeq
from bpeq.cli.terminal import Terminal
from bpeq.report.numbers import format_number
from bpeq.report.tables import Column, Group, Table

SOURCE = Path(bpeq.__file__).parent
CONFIG = """\
# β
data.name = "xor"
network.layers = ["dense(2)", "tanh", "dense(1)"]
optimizer = {name = "adam", learning_rate = 0.01}
training = {epochs = 1, batch_size = 4}
"""
ENDING = """\
import os, signal, sys

class Last:
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, {signal})

sys.last = Last()
from bpeq.cli import script
script()
"""


def command(*argv: object, code: str = "from bpeq.cli import script; script()", **variables: str):
    """Runs `bpeq ARGV` as a process with these environment variables."""
    removed = ("LC_ALL", "LANG", "PYTHONUTF8", "PYTHONIOENCODING", "COLUMNS")
    kept = {key: value for key, value in os.environ.items() if key not in removed}
    environment = {**kept, "PYTHONPATH": str(SOURCE.parent), **variables}
    program = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(program, env=environment, capture_output=True)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("variables", [ASCII, {"PYTHONIOENCODING": "latin-1"}], ids=["C", "latin"])
def test_characters_that_the_terminal_lacks_are_replaced(variables):
    done = command("show", "rule", "eqprop", **variables)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"nudging" in done.stdout
    assert b"?" in done.stdout


def test_a_run_under_an_ascii_locale_writes_utf8_files(tmp_path):
    (tmp_path / "c.toml").write_text(CONFIG, encoding="utf-8")
    argv = ["run", tmp_path / "c.toml", "--out", tmp_path / "out"]
    done = command(*argv, **ASCII)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert "·" in (tmp_path / "out" / "report.html").read_bytes().decode("utf-8")
    again = command(*argv, "--resume", **ASCII)
    assert again.returncode == 0, again.stderr


def test_every_text_file_is_opened_as_utf8():
    for path in sorted(SOURCE.rglob("*.py")):
        for call in (n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if is_open(n)):
            named = {keyword.arg for keyword in call.keywords}
            assert "encoding" in named or binary(call), f"{path}: {ast.unparse(call)}"


def is_open(node: ast.AST) -> bool:
    """Whether it is `open`, or a method of a path; functions of bpeq take the path as argument."""
    if not isinstance(node, ast.Call):
        return False
    name, count = ast.unparse(node.func), len(node.args)
    texts = {"read_text": 0, "write_text": 1}
    method = name.rpartition(".")[2]
    path = "." in name and (texts.get(method) == count or (method == "open" and count < 2))
    return name == "open" or path


def binary(call: ast.Call) -> bool:
    modes = [a.value for a in call.args if isinstance(a, ast.Constant)]
    return any(isinstance(mode, str) and "b" in mode for mode in modes)


@pytest.mark.parametrize("columns", [0, 1, 8, 12, 39])
def test_a_narrow_terminal_shows_every_name_and_figure(columns):
    text = io.StringIO()
    rows = [[f"layer_{i}", 0.125, 250.0, 3.5e-8] for i in range(3)]
    headers = ("layer", "error", "tolerance", "largest error")
    table = Table([Column(header) for header in headers], [Group(rows)], "a table")
    Terminal(file=text, _environ={"COLUMNS": str(columns)}).print(table)
    words = text.getvalue().split()
    for i, row in enumerate(rows):
        assert f"layer_{i}" in words
        for value in row[1:]:
            assert words.count(format_number(value)) == len(rows)


@pytest.mark.parametrize("signal", [2, 15])
def test_a_signal_while_python_shuts_down_leaves_the_exit_code(signal):
    done = command("show", "rules", code=ENDING.replace("{signal}", str(signal)))
    assert done.returncode == 0


def test_help_and_version_have_the_usual_options(call):
    assert call("--version").out == f"bpeq {bpeq.__version__}\n"
    for argv in (["-h"], ["run", "-h"]):
        said = call(*argv)
        assert said.code == 0
        assert "Usage: bpeq" in said.out


def test_a_shell_completes_the_names_of_commands():
    words = {"_BPEQ_COMPLETE": "complete_bash", "COMP_WORDS": "bpeq ver", "COMP_CWORD": "1"}
    done = command(code="from bpeq.cli import script; script()", **words)
    assert done.stdout.split() == [b"verify"]
