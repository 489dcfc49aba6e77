# Everything runs in .venv, which `make install` fills with exactly the versions of requirements-dev.lock
# and `make demo` with those of requirements.lock: what running needs.
PYTHON ?= python3
BIN := .venv/bin
# Two stamps: what running needs, and what tests and development need beside it.
INSTALLED := .venv/.installed
DEVELOPED := .venv/.developed
# The Spark cluster of tests and demo has an environment of its own, of the versions of requirements-spark.lock.
SPARK := .venv-spark/.installed

.DEFAULT_GOAL := help
.PHONY: help install fill spark demo demo-spark up test screenshots lint types docs definitions format lock bench soak clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Some images set it. Demo and tests start hundreds of processes, and each would compile all of Dagster: 4 s.
unexport PYTHONDONTWRITEBYTECODE

install: $(DEVELOPED) ## Install the locked versions, the tests' too, and the project into .venv

$(INSTALLED): requirements.lock pyproject.toml
	@$(MAKE) --no-print-directory fill LOCK=requirements.lock
	@rm -f $(DEVELOPED) && touch $@

# What running needs is part of it.
$(DEVELOPED): requirements-dev.lock requirements.lock pyproject.toml
	@$(MAKE) --no-print-directory fill LOCK=requirements-dev.lock
	@touch $(INSTALLED) $@

fill:
	@echo "Installing the $$(grep -c '^[a-z]' $(LOCK)) packages of $(LOCK) into .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes $(LOCK)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .

spark: $(SPARK) ## Install a Spark cluster for the laptop, Java included, into .venv-spark

$(SPARK): requirements-spark.lock pyproject.toml | $(INSTALLED)
	@echo "Installing the $$(grep -c '^[a-z]' requirements-spark.lock) packages of requirements-spark.lock into .venv-spark"
	@$(PYTHON) -m venv .venv-spark
	@$(BIN)/uv pip sync --quiet --python .venv-spark/bin/python --require-hashes requirements-spark.lock
	@$(BIN)/uv pip install --quiet --python .venv-spark/bin/python --no-deps --editable .
	@touch $@

demo: $(INSTALLED) ## Two weeks of sample logs through the whole pipeline, then the tables
	@$(BIN)/user-pipeline demo

# With the tests' packages: the client of Spark is none of what running needs.
demo-spark: $(DEVELOPED) $(SPARK) ## Two days of it on a Spark cluster of processes, which ends with it
	@$(BIN)/python -m user_pipeline.cli.spark_cluster -- $(BIN)/user-pipeline demo --days 2

up: $(INSTALLED) ## The Dagster UI and daemon on the embedded services
	@$(BIN)/user-pipeline up

test: $(DEVELOPED) $(SPARK) ## Every test (ARGS= passes arguments to pytest)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

screenshots: $(DEVELOPED) ## The pictures of the documentation, made anew (needs chromium)
	$(BIN)/python -m pytest user_pipeline_tests/ui --screenshots docs/images

lint: $(DEVELOPED) ## Formatting, lint, spelling, and the layers of the package
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/lint-imports --no-logo --no-cache

types: $(DEVELOPED) ## Strict type check
	$(BIN)/mypy

docs: $(DEVELOPED) ## The documentation as a site, in build/docs
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# With an instance of its own that keeps nothing: that of the checkout would start the embedded Postgres.
definitions: $(DEVELOPED) ## What Dagster's own command line finds wrong with the project
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && echo 'telemetry: {enabled: false}' >"$$home/dagster.yaml" && \
		export DAGSTER_HOME="$$home" VIRTUAL_ENV="$(CURDIR)/.venv" && set -x && \
		$(BIN)/dg check toml && $(BIN)/dg check defs && $(BIN)/dg list defs

format: $(DEVELOPED) ## Rewrite the code as the formatter and the linter want it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-annotate --no-header
lock: $(DEVELOPED) ## Choose new versions within pyproject.toml's bounds
	$(COMPILE) --upgrade --extra dev pyproject.toml --output-file requirements-dev.lock
	rm requirements.lock
	$(COMPILE) --constraint requirements-dev.lock pyproject.toml --output-file requirements.lock
	$(COMPILE) --upgrade --group spark-cluster --constraint requirements-dev.lock --output-file requirements-spark.lock

soak: $(DEVELOPED) ## Random histories against the oracle (ARGS="--minutes 60 --seed 1"); goes on where it was
	$(BIN)/python -m user_pipeline_tests.soak $(ARGS)

BENCH ?= pipeline.py
bench: $(DEVELOPED) ## A benchmark: pipeline.py, or BENCH=recommender_speed.py (ARGS= are its arguments: ARGS=--help)
	$(BIN)/python benchmarks/$(BENCH) $(ARGS)

clean: ## Stop what is embedded, then remove data, caches and .venv
	@if [ -x $(BIN)/user-pipeline ]; then $(BIN)/user-pipeline down; fi
	rm -rf data dist build .venv .venv-spark .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
