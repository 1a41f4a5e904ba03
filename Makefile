# bpeq: the two commands of the README are `make demo` and `make test`; both set everything up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: demo test test-slow studies lint types bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## backprop and equilibrium propagation learn the same digits, five seeds each
	$(BIN)/bpeq compare configs/digits.toml --rules backprop,eqprop

test: $(STAMP)  ## every test but the slow studies, and the docstrings' examples
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)  ## the studies that take minutes; set BPEQ_DATA for those on MNIST
	$(BIN)/python -m pytest -m slow

studies: $(STAMP)  ## all of them, about an hour on 2 cores; rewrites their tables and pictures; set BPEQ_DATA
	$(BIN)/python experiments/studies.py

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)  ## speed and memory side by side, about eleven minutes; benchmarks/out/bench.html; set BPEQ_DATA
	$(BIN)/python -m benchmarks.bench

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .jax_cache
