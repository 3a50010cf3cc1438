# make quickstart   an environment from the lock, then a small study from end to end
# make test         the whole gate, the same that .ci/run runs
# docs/development.md has the rest: single steps, and how the lock is renewed.

PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?=
LOCK_FLAGS ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

bin := $(abspath $(VENV))/bin
gate := $(CURDIR)/build/gate
sources := $(shell find autocompress flows search_spaces -name '*.py' -o -name '*.yaml' 2>/dev/null)

# -qq: errors only. Where pip has several indexes it warns of every package that one of them lacks.
pip_flags := -qq --disable-pip-version-check
supported := import sys; v = sys.version_info[:2]; \
	sys.exit(0 if (3, 11) <= v <= (3, 13) else f"autocompress needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")
comma := ,
step = @printf '\n== %s\n' '$(1)'

.PHONY: help quickstart test lint types imports tests wheel lock clean

help: ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

quickstart: $(VENV)/.project ## make .venv from the lock and run the digits study
	@$(bin)/autocompress run digits

test: lint imports types tests wheel ## the whole gate: everything below
	@printf '\nThe gate is green.\n'

lint: $(VENV)/.dev ## ruff: lint and format
	$(call step,ruff)
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .

# Types and imports are checked on what the wheel holds: only there does flows/ lie at its place in the package.
imports: $(gate)/.tree ## import-linter: layers and third-party fences
	$(call step,import-linter)
	@cd $(gate)/tree && $(bin)/lint-imports --config $(CURDIR)/pyproject.toml --no-cache --no-logo

types: $(gate)/.tree ## mypy --strict
	$(call step,mypy)
	@cd $(gate)/tree && $(bin)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache

# One thread each: two workers that each start two would wait for each other.
tests: $(VENV)/.dev ## pytest: all tiers, doctests and the docs' examples
	$(call step,pytest on both cores: what needs neither servers nor a quiet machine)
	@OMP_NUM_THREADS=1 $(bin)/python -m pytest -m 'not integration and not alone' -n 2 --dist worksteal --durations=15 $(PYTEST_FLAGS)
	$(call step,pytest one by one: servers$(comma) real time)
	@$(bin)/python -m pytest -m 'integration or alone' --durations=10 $(PYTEST_FLAGS)

wheel: $(gate)/.tree ## install the wheel and the lock into an empty environment; start it there
	$(call step,wheel in an empty environment)
	@$(PYTHON) -m venv --clear $(gate)/empty
	@$(gate)/empty/bin/python -m pip install $(pip_flags) --no-compile -r requirements.lock $(gate)/dist/*.whl
	@$(gate)/empty/bin/python -m pip check
	@cd $(gate) && empty/bin/autocompress validate digits && empty/bin/autocompress doctor
	@rm -rf $(gate)/empty

lock: ## renew requirements.lock and requirements-dev.lock (LOCK_FLAGS=--upgrade for the newest versions)
	@$(PYTHON) -c '$(supported)'
	@$(PYTHON) -m venv --clear build/lock
	@build/lock/bin/python infra/lock.py $(LOCK_FLAGS)
	@rm -rf build/lock
	@git --no-pager diff --stat -- requirements.lock requirements-dev.lock

clean: ## remove what make made: .venv, build and caches (never autocompress-runs)
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A new lock is a new environment: pip would leave behind what the old lock had and the new one has not.
$(VENV)/.locked: requirements.lock
	@$(PYTHON) -c '$(supported)'
	@echo "Installing the locked packages into $(VENV) (2.3 GB, about two minutes, once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(bin)/python -m pip install $(pip_flags) -r requirements.lock
	@touch $@

$(VENV)/.project: $(VENV)/.locked pyproject.toml
	@$(bin)/python -m pip install $(pip_flags) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.project requirements-dev.lock
	@echo "Installing the development tools into $(VENV)"
	@$(bin)/python -m pip install $(pip_flags) -r requirements-dev.lock
	@touch $@

# By way of the source archive: files left in build/lib by an earlier build cannot reach this wheel.
$(gate)/.tree: $(VENV)/.dev pyproject.toml README.md $(sources)
	@rm -rf $(gate) && mkdir -p $(gate)
	@$(bin)/python -m build --no-isolation --outdir $(gate)/dist . > $(gate)/build.log 2>&1 || { cat $(gate)/build.log >&2; exit 1; }
	@$(bin)/python -m zipfile -e $(gate)/dist/*.whl $(gate)/tree
	@touch $@
