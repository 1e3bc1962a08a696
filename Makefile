# Every target works from a fresh clone: the environment lives in .venv and is made when it is missing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
EXTRAS ?= train,evaluate,ray,airflow,postgres,explore,dev
RECIPE ?= demo

.DEFAULT_GOAL := help
.PHONY: help install run ui test test-slow lint format bench clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## Make .venv with everything in it

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 install")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

run: install  ## The embedded corpus through the whole pipeline, in Airflow; then stop what was started
	@$(BIN)/bliss run $(RECIPE) --airflow --start

ui: install  ## Start Airflow and Ray and leave them up; `.venv/bin/bliss down` stops them
	@$(BIN)/bliss up

test: install  ## Tests, without the slow ones (minutes)
	@$(BIN)/python -m pytest

test-slow: install  ## The slow tests: the whole pipeline through Airflow, kills, real corpora
	@$(BIN)/python -m pytest -m slow

lint: install  ## Formatting, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: install  ## Benchmarks; each ends with one line of JSON
	@for file in benchmarks/*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

clean:  ## Remove the environment and caches; the lake stays
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
