# Everything a newcomer types. Each target makes what it needs; a second call is quick.
PYTHON ?= python3
BIN := .venv/bin
# A process for each core, each with one thread: tiny networks wait longer for a second one than they compute.
# One that dies ends the run: what pytest-xdist starts in its place may wait for ever.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --max-worker-restart 0

.PHONY: demo test test-all lint bench clean

demo: .venv/installed ## train, evaluate and predict on real handwritten digits
	@$(BIN)/python scripts/demo.py

test: .venv/dev lint ## what CI runs
	$(PYTEST) -m "not slow"

test-all: .venv/dev lint ## every proof, the slow ones too
	$(PYTEST)

lint: .venv/dev ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: .venv/dev ## the numbers of the README and docs/results.md
	@for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean: ## forget everything that was made
	rm -rf .venv demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[digits]"
	@touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@
