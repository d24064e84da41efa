# The two commands a newcomer needs are `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
CHECKED := genexp scripts tests

.DEFAULT_GOAL := help
.PHONY: help install run test test-all check format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

install: .venv/installed ## Create .venv and install genexp with what its tests need

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: install ## Run the default experiment: a VAE on 5,000 real digits
	$(BIN)/genexp

test: install check ## Check style and types, then run the tests but for slow ones
	$(BIN)/python -m pytest -m "not slow"

test-all: install check ## Check style and types, then run all tests
	$(BIN)/python -m pytest

check: install ## Check style and types
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy

format: install ## Format the code and apply the automatic fixes of ruff
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

clean: ## Remove what was installed or built; runs in outputs/ stay
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
