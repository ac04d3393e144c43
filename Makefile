# Two commands on a fresh machine: `make quickstart` and `make test`. PYTHON may name any Python from 3.11 on.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help quickstart test install dev lint format lock clean

help: ## show what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# glibc gives the memory of a training step back after each step and takes it again, page by page; told to keep it, and
# to use huge pages, it saves a CPU a fourth of the time. Other systems ignore the variable. It is set in the recipe
# itself, because glibc passes only the first setting on from one process to the next.
KEEP_MEMORY := GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592

quickstart: install ## make a data set, train, evaluate, stream and export, in under ten minutes on two cores
	$(KEEP_MEMORY) $(BIN)/swjax quickstart

test: dev lint ## everything that a change must pass
	$(BIN)/python -m pytest -n 2 --dist worksteal

install: $(VENV)/.installed ## the environment that users need, in .venv

dev: $(VENV)/.installed-dev ## the same with the tools for developing

lint: dev ## ruff and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: dev ## let ruff mend what it can
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
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.installed
