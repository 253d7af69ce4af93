# Two commands set everything up: `make demo` (install what the demo needs, run it) and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test env bench

demo: .venv/demo
	$(BIN)/cyclr demo

test: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python benchmarks/table.py --check
	$(BIN)/python experiments/rebuild.py --check
	$(BIN)/python benchmarks/regret/tables.py --check
	$(BIN)/pytest -n 2

env: .venv/env

bench: env
	for name in scheduler_step range_test_cost throughput start_up demo; do $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/table.py

# The files .venv/demo and .venv/env are made last, so that an installation that was cut off is done again.
.venv/python: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cyclr needs Python 3.11 or later, $(PYTHON) is older; use make PYTHON=python3.12, say"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	touch $@

.venv/demo: .venv/python
	$(BIN)/python -m pip install --quiet --editable '.[lab]'
	touch $@

.venv/env: .venv/python
	$(BIN)/python -m pip install --quiet --editable '.[lab,datasets]' --group dev
	touch .venv/demo $@
