# Two commands on a fresh machine: `make quickstart` and `make test`. PYTHON may name any Python from 3.11 on.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help quickstart test gpu install dev lint format lock clean

help: ## show what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# A training step takes some hundred megabytes and gives them back; huge pages, where glibc has them, make that cheaper.
quickstart: install ## make a data set, train, evaluate, stream and export, in five minutes on two cores
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/swjax quickstart

# A worker keeps what it has compiled, and beside a gigabyte or more of that each test of large weights needs twelve. So
# these have workers of their own.
LARGE := tests/hub tests/training tests/planning

test: dev lint ## everything that a change must pass
	$(BIN)/python -m pytest -n 2 --dist worksteal $(LARGE)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(addprefix --ignore=,$(LARGE))

# The Python and the packages that are there, as a machine with a GPU brings its own.
gpu: ## measure what is claimed of an NVIDIA GPU, in ten minutes; benchmarks/gpu.py --help says what
	$(PYTHON) benchmarks/gpu.py

install: $(VENV)/.installed ## the environment that users need, in .venv

dev: $(VENV)/.installed-dev ## the same with the tools for developing

lint: dev ## ruff, mypy and import-linter, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: dev ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: dev ## write constraints.txt anew from pyproject.toml, for every supported Python
	$(INSTALL) uv
	$(BIN)/uv pip compile --universal --all-extras --no-header --no-annotate --upgrade --python-version 3.11 pyproject.toml -o constraints.txt

clean: ## remove the environment and what the tools left
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis dist

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -e '.[serve]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.installed
