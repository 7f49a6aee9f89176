# Everything a newcomer types; `make` alone lists it. Each target installs what it needs, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-compile --editable
# On all cores, which pip does not; a few packages hold files for other versions of Python.
COMPILE := $(BIN)/python -W ignore -m compileall -qq -j 0 -x /tests/ .venv/lib || true
# One process per core, each with one thread: tiny networks wait longer for a second thread than they compute.
# A worker that dies ends the run: the one that pytest-xdist starts in its place may wait forever.
# `tests/conftest.py` puts the longest files first: the last one would keep one core waiting.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# Named after the contents of all files that lint reads, so that `make test` lints only what has not passed before.
LINTED := .venv/linted-$(shell find . -type d -name '.?*' -prune -o -type f \( -name '*.py' -o -name '*.md' \
	-o -name '*.toml' -o -name Makefile \) -exec cksum {} + | sort | cksum | cut -d ' ' -f 1)

.PHONY: help demo test test-all lint bench clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: .venv/installed ## train, evaluate and predict on real handwritten digits
	@$(BIN)/python scripts/demo.py

test: .venv/dev $(LINTED) ## what CI runs: lint if anything changed, then all but the slow tests
	$(PYTEST) -m "not slow"

test-all: .venv/dev $(LINTED) ## lint if anything changed, then every test
	$(PYTEST)

lint: .venv/dev ## check format, style, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	@touch $(LINTED)

bench: .venv/dev ## measure what needs no images of yours; docs/results.md names the other scripts
	@for run in digits.py loading.py inference.py "training.py precision step validation pipeline scan overhead" \
		calibration.py explanation.py export.py neighbours.py serving.py; do \
		$(BIN)/python benchmarks/$$run || exit 1; done

clean: ## delete everything that was made here
	rm -rf .venv demo

$(LINTED): .venv/dev
	@$(MAKE) --no-print-directory lint

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) ".[digits,serve]"
	@$(COMPILE)
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) ".[dev]"
	@$(COMPILE)
	@touch .venv/installed $@
