# Every target works from a fresh clone: the environment lives in .venv and is made when it is missing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
EXTRAS ?= train,evaluate,ray,airflow,postgres,explore,dev
RECIPE ?= demo
MINUTES ?= 60
SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help install run ui test test-slow soak faults lint format audit scan bench clean

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

soak: install  ## An hour of work, reading and kills on the local stack, and a verdict (MINUTES=60 SEED=0)
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) --seed $(SEED)

faults: install  ## The fault matrix: everything of a cluster broken during every stage (hours; finished rows are kept)
	@$(BIN)/python -m tests.faults

lint: install  ## Formatting, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

audit: install  ## Known vulnerabilities of what is pinned (asks the network)
	@$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

scan: install  ## Secrets in what is committed
	@baseline=$$(mktemp) && cp .secrets.baseline $$baseline \
	&& git ls-files -z ':!.secrets.baseline' | xargs -0 sh -c \
	  '$(BIN)/detect-secrets-hook --no-verify --baseline "$$0" "$$@" || test $$? = 3' $$baseline  # 3: only lines have moved

bench: install  ## Benchmarks; each ends with one line of JSON
	@for file in benchmarks/*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

clean:  ## Remove the environment and caches; the lake stays
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
