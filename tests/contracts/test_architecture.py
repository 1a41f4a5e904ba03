"""The floors, the light import, and what no file may contain."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bpeq
from bpeq.registry import KINDS

SOURCE = Path(bpeq.__file__).parent
FLOORS = [
    ["types", "settings", "trees", "numerics", "tracing", "shards"],
    ["layers", "costs"],
    ["solvers", "imperfections"],
    ["systems"],
    ["rules"],
    ["fidelity", "orders", "equilibrium", "gdu", "locality", "energy_contract"],
    ["data"],
    [
        "optimizers",
        "counting",
        "accounting",
        "side_by_side",
        "settling",
        "training",
        "parallel",
        "scoring",
    ],
    ["registry", "_own", "_schema", "_calls", "_overrides", "_sections", "config"],
    [
        *["cluster", "rehearsal", "problem", "networks", "probe", "checking", "showing", "runs"],
        *["packing", "timing", "journal", "locking", "sealing", "checkpoints", "looping"],
        *[
            "resuming",
            "studying",
            "experiment",
            "loading",
            "grids",
            "microscope",
            "tuning",
            "comparison",
            "cells",
            "sweeping",
            "searching",
            "auditing",
            "verifying",
        ],
    ],
    ["report"],
    ["_signals", "_launch", "_terminal", "_app", "_commands", "_sweeps", "_looks", "cli"],
]
PLACE = {name: (i, j) for i, floor in enumerate(FLOORS) for j, name in enumerate(floor)}
FACE = "__init__"  # of the package itself: it hands out everything, lazily


def room(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms of bpeq that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "bpeq":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bpeq."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("bpeq.")}
    return found


def test_every_module_stands_on_a_floor():
    rooms = {room(path) for path in SOURCE.rglob("*.py")} - {FACE}
    assert rooms == set(PLACE)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_imports_go_down_or_left(path):
    own = room(path)
    if own == FACE:
        return
    upward = {name for name in imported(path) if name != own and PLACE[name] > PLACE[own]}
    # cli hands exit codes to its commands and its commands to itself: one program in several files
    assert upward <= ({"cli"} if own in ("_commands", "_sweeps", "_looks") else set())


@pytest.mark.parametrize(
    "module", ["bpeq", "bpeq.layers", "bpeq.rules", "bpeq.systems", "bpeq.training"]
)
def test_library_import_loads_none_of_the_upper_floors_packages(module):
    heavy = ["pydantic", "typer", "rich", "matplotlib", "sklearn", "pooch", "jinja2"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_backward_uses_autodiff():
    for path in (SOURCE / "layers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "backward":
                text = ast.unparse(node)
                for word in ("jax.grad", "jax.vjp", "value_and_grad", "linear_transpose"):
                    assert word not in text, f"{path.name}: {word} in a backward"


def test_library_code_neither_prints_nor_touches_files():
    below = [name for floor in FLOORS[:6] for name in floor if name != "data"]
    for path in SOURCE.rglob("*.py"):
        if room(path) in below:
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            names = {ast.unparse(call.func) for call in calls}
            assert not names & {"print", "open", "Path"}, path


def test_modules_stay_small():
    sizes = {p: len(p.read_text().splitlines()) for p in SOURCE.rglob("*.py")}
    assert {p.name: n for p, n in sizes.items() if n > 260} == {}


def test_no_function_shares_its_name_with_a_module():
    rooms = {room(path) for path in SOURCE.rglob("*.py")}
    names = {name for table in KINDS.values() for name in table} | set(bpeq._FUNCTIONS)
    assert not names & rooms


def test_dir_and_all_of_the_face_resolve():
    for name in bpeq.__all__:
        assert getattr(bpeq, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        bpeq.nonsense  # noqa: B018
