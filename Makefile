# Every command of a developer and of a first-time user: `make` lists them.
# The environment (.venv) is made on first use from the hash-locked files in requirements/, and made anew only when one of
# them or pyproject.toml changes. PYTHON=... names another Python, ARGS=... is handed to pytest, the soak or a benchmark.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
UPGRADE ?=
export PYTHON
unexport PYTHONDONTWRITEBYTECODE # or each of the hundreds of processes that tests start compiles all that it imports, Airflow too

COMPILE := $(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
           --python-version 3.11 $(if $(UPGRADE),--upgrade)

.PHONY: help demo test test-system test-deploy soak check format lock release bench-ingest bench-compaction bench-service \
        bench-workers environment clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## collect from a simulated X into a local lake and look at the table; no account needed
	@$(BIN)/python -m sandbox demo $(ARGS)

DEAL := --dist=loadscope --no-loadscope-reorder --maxprocesses=4 --numprocesses

test: $(READY) ## every test that needs no more than this checkout; ARGS="tests/house -k fence" runs some
	@$(BIN)/python -m pytest $(or $(ARGS),$(DEAL) auto)

test-system: $(READY) ## a booted systemd, Airflow on PostgreSQL, Prometheus, a browser, full disks; installs what is missing, as root
	@.ci/system-packages
	@$(BIN)/python -m pytest $(or $(ARGS),tests/system $(DEAL) 2)

test-deploy: $(READY) ## a booted machine, prepared, upgraded and put back as on AWS, in about 5 minutes; installs what is missing, as root
	@.ci/system-packages nftables python3-venv
	@$(BIN)/python -m pytest $(or $(ARGS),tests/deploy/test_machine.py)

soak: $(READY) ## kill real ingesters while X and S3 fail, for 10 minutes; ARGS="--minutes 3" and more, see docs/soak.md
	@$(BIN)/python -m sandbox soak $(ARGS)

check: $(READY) ## format, lint, types and import rules; changes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(READY) ## put the code into its form and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench-ingest: $(READY) ## tweets per CPU-second from HTTP answer to durable spool
	@$(BIN)/python -m benchmarks.bench_ingest $(ARGS)

bench-compaction: $(READY) ## CPU, time and memory of a compaction against Polars, DuckDB, pandas and its bounds; ARGS="--hour"
	@$(BIN)/python -m benchmarks.bench_compaction $(ARGS)

bench-service: $(READY) ## time to the first request, memory, idle CPU and freshness of the running service, against their bounds
	@$(BIN)/python -m benchmarks.bench_service $(ARGS)

bench-workers: $(READY) ## 24 raw hours by Airflow with one worker and with two: the same tables, and the time; needs PostgreSQL
	@.ci/system-packages
	@$(BIN)/python -m benchmarks.bench_workers $(ARGS)

lock: $(READY) ## write requirements/*.lock from pyproject.toml; UPGRADE=1 takes newer versions
	@$(COMPILE) requirements/bootstrap.in -o requirements/bootstrap.lock
	@for extra in ingester compaction airflow dev; do \
	  $(COMPILE) pyproject.toml --extra $$extra -o requirements/$$extra.lock; \
	done
	@wc -l requirements/*.lock

release: $(READY) ## the one file that a machine is installed from, into dist/
	@$(BIN)/python -m deploy.release

environment: $(READY) ## make .venv and stop there
	@echo "$(VENV) is ready: $$($(BIN)/python --version)"

$(READY): requirements/bootstrap.lock requirements/dev.lock pyproject.toml .ci/environment
	@.ci/environment $(VENV)
	@touch $@

clean: ## remove the environment, caches and the demo's data
	@rm -rf $(VENV) demo-data build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
