# Everything a newcomer or CI runs. Needs Python >= 3.11, git and make; the rest goes into .venv.

# The newest-enough Python of the machine; override with `make PYTHON=/path/to/python test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Touched after an install; newer than pyproject.toml means there is nothing to do.
STAMP := $(VENV)/.moray-dev
# Extra arguments for pytest: make test ARGS="tests/core -x"
ARGS ?=
# Processes that share the tests, a file to each; 0 runs them in one, for a debugger.
TESTERS ?= 2

CODE := src tests benchmarks examples

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-torch bench bench-gate lint format types docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP) ## make .venv with moray and every tool in it (the other targets do it by themselves)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "moray needs Python 3.11 or newer")'
	@echo "setting up $(VENV): a minute or two the first time, nothing after that"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: $(STAMP) ## the tour: real jobs, serial against parallel, then actors, generators and more (under a minute)
	$(BIN)/python -m examples.demo

test: $(STAMP) ## the tests, but for the long ones
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile -m "not long" $(ARGS)

test-long: $(STAMP) ## all tests with larger numbers, those over a minute among them
	MORAY_HYPOTHESIS=long $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --timeout=3600 $(ARGS)

test-torch: $(STAMP) ## the tests of torch tensors, with a torch of their own (5 GB)
	@test -x build/torch/bin/pip || $(PYTHON) -m venv build/torch
	build/torch/bin/pip install --quiet --disable-pip-version-check -e ".[dev]" torch
	build/torch/bin/python -m pytest tests/api/test_torch.py $(ARGS)

bench: $(STAMP) ## the benchmarks beside Ray, stdlib pools and the floor
	$(BIN)/python -m benchmarks $(ARGS)

bench-gate: $(STAMP) ## fail if a benchmark fell under 0.8 of its recorded ratio to the floor
	$(BIN)/python -m benchmarks --gate $(ARGS)

lint: $(STAMP) ## ruff, formatting, the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

format: $(STAMP) ## let ruff sort imports and lay the code out
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy on everything, pyright on the public API's typing tests
	$(BIN)/mypy
	@if [ -d tests/typing ]; then echo "$(BIN)/pyright"; $(BIN)/pyright; fi

docs: $(STAMP) ## check the documents, build them as a site into build/site, preview the news
	$(BIN)/python -m pytest -q tests/tidy/test_documents.py tests/examples/test_pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/towncrier build --draft --version next

clean: ## remove everything that make made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
