# Two commands set everything up: `make demo` (install what the demo needs, run it) and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test env bench oldest

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
	for name in scheduler_step range_test_cost throughput start_up demo adapters snapshot_cost hundred_range_tests; do $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/table.py

# The adapters with the oldest versions of their frameworks; some minutes, and not part of `make test`.
oldest: .venv-oldest/env
	.venv-oldest/bin/pytest -n 2 tests/test_frameworks.py tests/lightning_adapter tests/transformers_adapter \
		tests/test_accelerate.py tests/test_keras.py tests/test_jax.py

.venv-oldest/env: pyproject.toml oldest.txt
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-oldest/bin/python -m pip install --quiet --editable '.[lab,lightning,transformers,keras,jax]' --group dev \
		--constraint oldest.txt
	touch $@

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
	$(BIN)/python -m pip install --quiet --editable '.[lab,datasets,vision,lightning,transformers,keras,jax,ray]' --group dev
	touch .venv/demo $@
