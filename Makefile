# bpeq: the two commands of the README are `make demo` and `make test`; both set everything up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.ready

# What `make test-oldest` runs: members' contracts, layers, costs, solvers, systems, rules, training,
# a config, and its run by the command line. The other tests would say the same of old versions.
CORE := tests/contracts tests/oracles/test_costs.py tests/oracles/test_layers.py \
	tests/oracles/test_solvers.py tests/oracles/test_eqprop.py tests/training tests/config/test_config.py

.PHONY: demo test test-all test-slow test-long test-oldest studies lint types bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## backprop and equilibrium propagation learn the same digits, five seeds each
	$(BIN)/bpeq compare configs/digits.toml --rules backprop,eqprop

test: $(STAMP)  ## what a change needs: all tests but the slow and the long ones, and docstrings' examples
	$(BIN)/python -m pytest -n 2 -m "not slow and not long"

test-slow: $(STAMP)  ## only those of tests/slow.txt, which take seconds each
	$(BIN)/python -m pytest -n 2 -m slow

test-long: $(STAMP)  ## only those that take minutes each; set BPEQ_DATA for those on MNIST
	$(BIN)/python -m pytest -m long

test-all: test test-slow test-long  ## every test

$(OLDEST_STAMP): pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[test]'
	$(OLDEST)/bin/python -m pip freeze --exclude-editable | diff constraints-oldest.txt -
	touch $@

test-oldest: $(OLDEST_STAMP)  ## the core tests on the lower bounds; needs Python 3.11 or 3.12 (PYTHON=python3.11)
	$(OLDEST)/bin/python -m pytest -n 2 -m "not slow and not long" $(CORE)
	rm -rf $(OLDEST)/xor
	$(OLDEST)/bin/bpeq run configs/xor.toml --set training.epochs=20 --out $(OLDEST)/xor

studies: $(STAMP)  ## all of them, about an hour on 2 cores; rewrites their tables and pictures; set BPEQ_DATA
	$(BIN)/python experiments/studies.py

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)  ## speed and memory side by side, about eleven minutes; benchmarks/out/bench.html; set BPEQ_DATA
	$(BIN)/python -m benchmarks.bench

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache .jax_cache
