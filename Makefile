# All commands of the project. `make` without a target lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One worker more than the two processors: the tests on the local stack mostly wait for Airflow.
PYTEST_ARGS ?= -n 3

.DEFAULT_GOAL := help
.PHONY: help demo up down status clean-demo gc retire env compose-up compose-down compose-test \
  test lint format generated docs wheel screenshots zoo bench adopt soak load coverage mutation

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## Train a model and show Airflow's release of it (ONCE=1: stop the services at the end)
	@$(BIN)/python -m stack demo

up: $(STAMP) ## Start PostgreSQL, MinIO, MLflow and Airflow in the background, on 127.0.0.1
	@$(BIN)/python -m stack up

# These two install nothing: without the environment no service can run.
down: ## Stop the services
	@test ! -x $(BIN)/python || $(BIN)/python -m stack down

# Status 3 means that a service is stopped, which is no error of make.
status: ## Show the services and their addresses
	@if test -x $(BIN)/python; then $(BIN)/python -m stack status || test $$? -eq 3; else echo "Not installed yet. Run: make up"; fi

clean-demo: $(STAMP) ## Stop the services and remove their state (.local)
	@$(BIN)/python -m stack clean

# Status 1 of these two means that something is there to remove, which is no error of make.
gc: $(STAMP) ## List the leftovers of crashes in the local stack (DELETE=1: remove them; GRACE=hours)
	@test -f "$${STACK_HOME:-.local}/env" || { echo "gc: no stack in $${STACK_HOME:-.local}. Run: make up" >&2; exit 2; }
	@. "$${STACK_HOME:-.local}/env" && $(BIN)/airflow onnx-release gc $(if $(DELETE),--delete) $(addprefix --grace-hours ,$(GRACE)) || test $$? -eq 1

retire: $(STAMP) ## List the old versions of the local stack that no alias has (DELETE=1: delete them; ARGS="--keep-newest 1")
	@test -f "$${STACK_HOME:-.local}/env" || { echo "retire: no stack in $${STACK_HOME:-.local}. Run: make up" >&2; exit 2; }
	@. "$${STACK_HOME:-.local}/env" && $(BIN)/airflow onnx-release retire $(if $(DELETE),--delete) $(ARGS) || test $$? -eq 1

# These install nothing: they need Docker Engine, Compose and Python 3.11.
env: ## Write the secrets of docker-compose.yaml to .env; adds missing ones, changes no other
	@$(PYTHON) -m deploy.env

compose-up: env ## Start everything in containers, with Celery workers that share no disk (WORKERS=n)
	@$(PYTHON) -m deploy.compose up --workers $(or $(WORKERS),1)

compose-down: ## Stop and remove the containers; their volumes stay
	@$(PYTHON) -m deploy.compose down

compose-test: $(STAMP) ## Start docker-compose.yaml under another name, test it, remove it (needs Docker Engine)
	@$(BIN)/python -m pytest -m compose tests/compose

test: $(STAMP) ## Run every test, including those on the local stack (PYTEST_ARGS="-x tests/core": a part)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP) ## Check format, lint rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A child process with a clean environment finds tests/coverage on its import path. -n 2: the tests compute all the time.
coverage: export COVERAGE_FILE := $(CURDIR)/.coverage/data
coverage: $(STAMP) ## Measure lines and branches that the tests of core, edge and pages run (minutes; ROOMS="tests/core/parity": a part)
	@rm -rf .coverage && mkdir .coverage
	@PYTHONPATH=$(CURDIR)/tests/coverage $(BIN)/coverage run -m pytest -q -n 2 $(or $(ROOMS),tests/core tests/edge tests/browser); \
	  tests=$$?; $(BIN)/coverage combine -q && $(BIN)/python -m tests.coverage.rooms && exit $$tests

mutation: $(STAMP) ## Change the code that decides about a release and list the changes that no test notices (ONLY=parity/limits: one module)
	@PYTHONPATH=include:plugins:. $(BIN)/python -m tests.mutation $(addprefix --only ,$(ONLY))

format: $(STAMP) ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generated: $(STAMP) ## Write the pages of docs/ that are made from the code, and docs/report.schema.json
	$(BIN)/python docs/refusals.py
	$(BIN)/python docs/options.py
	$(BIN)/python docs/tags.py
	PYTHONPATH=include $(BIN)/python -m onnx_release.records.schema

wheel: $(STAMP) ## Build the wheel in dist/ and check its description as PyPI does
	@rm -rf dist && $(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null
	@$(BIN)/twine check --strict dist/*.whl

docs: $(STAMP) ## Build the site of the documentation in build/site; an unknown link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Read it: $(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8000"

screenshots: $(STAMP) ## Take the pictures of README and docs (needs Chromium; STACK_HOME=folder: releases of a stack there)
	@$(BIN)/python -m docs.screenshots

zoo: $(STAMP) ## Export every model of tests/zoo and print the outcome (ONLY=name: one model)
	@PYTHONPATH=include:plugins:. $(BIN)/python -m tests.zoo.table $(addprefix --only ,$(ONLY))

bench: $(STAMP) ## Measure and write bench/results.json (ONLY="export big": these parts; ROUNDS=n; FULL=1; REHEARSE=1)
	@PYTHONPATH=include:plugins:. $(BIN)/python -m bench $(addprefix --only ,$(ONLY)) $(addprefix --rounds ,$(ROUNDS)) \
	  $(if $(FULL),--full) $(if $(REHEARSE),--rehearse)

# It needs a package index: pip installs Airflow, MLflow and torch once for each version, then the wheel's dependencies.
adopt: $(STAMP) ## Install the wheel into a stock Airflow, release two models, print the seconds (AIRFLOW=3.2.2; JSON=file; KEEP=1)
	@$(BIN)/python -m adoption $(addprefix --airflow ,$(AIRFLOW)) $(addprefix --json ,$(JSON)) $(if $(KEEP),--keep)

soak: $(STAMP) ## Release under faults, kills and outages, and check that nothing is lost (ONLY="disk clock": a part; SEED=n; MINUTES=n; JSON=file)
	@PYTHONPATH=include:plugins:. $(BIN)/python -m soak $(if $(ONLY),--only $(ONLY)) $(addprefix --seed ,$(SEED)) \
	  $(addprefix --minutes ,$(MINUTES)) $(addprefix --json ,$(JSON))

load: $(STAMP) ## Release 50 models at once, plan 2,000 old runs, poll for a day (minutes; RELEASES=n OLD_RUNS=n POLLS=n; JSON=file)
	@PYTHONPATH=include:plugins:. $(BIN)/python -m soak.load $(addprefix --releases ,$(RELEASES)) \
	  $(addprefix --old-runs ,$(OLD_RUNS)) $(addprefix --polls ,$(POLLS)) $(addprefix --json ,$(JSON))

# Installation: again only when a list of packages has changed. A failed one writes no stamp, so the next call repeats it.
# On Linux without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu avoids the CUDA packages.
$(STAMP): requirements.txt requirements-dev.txt constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found. Install Python 3.11 or newer, or run make PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1). Python 3.11 to 3.13 is needed: run make PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free; sys.exit(free < 4e9 and f"make: {free / 1e9:.1f} GB are free on this disk and the packages need 4 GB. Free some space.")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "make: $(PYTHON) cannot create a virtual environment. On Debian and Ubuntu: apt install python3-venv." >&2; exit 1; }
	@echo "Installing the packages into $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -c constraints.txt
	@touch $@
