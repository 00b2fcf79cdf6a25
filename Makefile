# `make demo` and `make test` are enough on a machine with Python 3.10+, git and make: they build .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test fast check format bench claims clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(VENV)/installed ## make .venv and install tbpipe with its test tools into it

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: install ## the main job on real encoded videos, no download of weights
	$(BIN)/tbpipe demo

test: install ## every test that needs no GPU
	$(BIN)/python -m pytest --run-slow --durations 12

fast: install ## the fast tests
	$(BIN)/python -m pytest

check: install ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## write the formatting
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## measure every stage beside the limits of this machine
	$(BIN)/tbpipe bench --growth

claims: install ## check the ratios that the README claims
	$(BIN)/python -m benchmarks

clean: ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build ./*.egg-info
