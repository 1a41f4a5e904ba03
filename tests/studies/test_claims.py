"""The tables in the studies' READMEs: of claims.toml, filled in from summary.json."""

import json
import runpy
import tomllib

import pytest

STUDIES = ("vision", "depth", "sequence", "language", "autoencoder", "gan", "control")


@pytest.fixture(scope="module")
def script(studies):
    return runpy.run_path(str(studies / "studies.py"))


@pytest.mark.parametrize("name", STUDIES)
def test_every_claim_stands_in_the_readme_as_it_stands_in_its_file(studies, script, name):
    assert script["STUDIES"] == STUDIES
    claims = tomllib.loads((studies / name / "claims.toml").read_text())["claim"]
    text = (studies / name / "README.md").read_text()
    written = text.partition(script["BEGIN"])[2].partition(script["END"])[0]
    rows = [line.strip("| ").split(" | ") for line in written.splitlines() if line[:1] == "|"][2:]
    assert [(row[0], row[2]) for row in rows] == [(c["says"], c["expected"]) for c in claims]


def test_a_run_fills_in_the_table_and_brings_its_picture(studies, script, tmp_path, monkeypatch):
    values = {"mean": 0.01234, "std": 0.0005, "values": [0.01184, 0.01284]}
    monkeypatch.setitem(script["rewrite"].__globals__, "HERE", tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "claims.toml").write_text(
        '[[claim]]\nsays = "it works"\nexpected = "1"\n'
        'measured = "{found:2%}, {found:4}, {found:each}, {once:1}"\n'
    )
    (tmp_path / "one" / "README.md").write_text(f"A\n{script['BEGIN']}\nold\n{script['END']}\nZ\n")
    (tmp_path / "shown.png").write_bytes(b"png")
    summary = {
        "metrics": {"found": values, "once": {"mean": 3.0, "std": 0.0, "values": [3.0]}},
        "seeds": 2,
        "environment": {"cpu_count": 2, "backend": "cpu"},
        "seconds": {"total": 90},
        "pictures": ["shown.png"],
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    script["rewrite"]("one", tmp_path)
    text = (tmp_path / "one" / "README.md").read_text()
    cells = "1.23 ± 0.05 %, 0.0123 ± 0.0005, 0.01184, 0.01284, 3.0"
    assert f"| it works | `bpeq run configs/one.toml` | 1 | {cells} |" in text
    assert "2 seeds, mean ± std; 1.5 minutes in all on 2 shared CPU cores, 20" in text
    assert text.startswith("A\n")
    assert text.endswith("Z\n")
    assert "old" not in text
    assert (tmp_path / "one" / "shown.png").read_bytes() == b"png"
