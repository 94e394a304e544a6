# Two commands do all the set-up: `make demo` and `make test`. Both create .venv when it is missing.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint format clean-results

help:
	@echo "make demo       set up, run the main command, then none / random / gprune side by side"
	@echo "make test       set up, run all tests"
	@echo "make test-fast  the tests that need no subprocess and no long run"
	@echo "make lint       ruff, and pyright on the rooms it is clean on"

demo: $(READY)
	$(BIN)/python run.py method=gprune ratio=0.9 bench=textvqa
	$(BIN)/python run.py experiment=demo

# Two workers, one thread each: more threads than cores wait for each other.
test test-fast: export OMP_NUM_THREADS := 1

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --durations=25

test-fast: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow"

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/python -m ruff check --fix . ; $(BIN)/python -m ruff format .

clean-results:
	rm -rf results/runs results/multirun results/.cache

# The second engine comes with --no-deps: it would move antlr to a version Hydra cannot parse with.
# What of its needs is used is in our `test` extra; `pip check` lists the rest, and nothing else.
VLMEVAL := ms-vlmeval==0.0.20

# The newest interpreter that is new enough; the stamp makes the second call instant.
$(READY): pyproject.toml constraints.txt
	@set -e; \
	if [ ! -x $(BIN)/python ]; then \
	  for python in python3.13 python3.12 python3.11 python3 python; do \
	    if $$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found=$$python; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then echo "error: Python >= 3.11 with venv is needed" >&2; exit 1; fi; \
	  echo "creating $(VENV) with $$($$found --version)"; $$found -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps '$(VLMEVAL)'
	@touch $@
