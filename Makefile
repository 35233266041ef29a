# Two commands do everything on a fresh machine: `make train` and `make test`.
# Each target is idempotent; packages are installed again only when pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ENV ?= ant

.PHONY: train test test-slow test-all lint format bench clean
.DELETE_ON_ERROR:

train: $(VENV)/.installed          ## train Ant to walk; `make train ENV=hopper` for another environment
	$(BIN)/trpo-jax train $(ENV) $(ARGS)

test: $(VENV)/.installed-dev       ## run the tests, but for those that repeat at length what others show
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-dev  ## run the others
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow $(ARGS)

test-all: test test-slow           ## run all tests

lint: $(VENV)/.installed-dev       ## check style, types and the layering of the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev     ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench    ## measure: policy update, its peers and costs, throughput, checkpoints, devices, start-up, returns, time to a return, packing (over an hour)
	for name in policy_update sb3_contrib_update curvature_costs throughput checkpointing devices startup returns time_to_return packing; do \
	  $(BIN)/python benchmarks/$$name.py --json docs/benchmarks/$${name}_cpu.json || exit 1; \
	done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing trpo_jax into $(VENV) …"
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing trpo_jax and what its tests need into $(VENV) …"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing trpo_jax and what its benchmarks compare it with into $(VENV) …"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[bench]"
	@touch $@

clean:                             ## remove what the other targets made, but no runs
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
