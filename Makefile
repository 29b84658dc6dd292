# `make` lists the targets. Everything runs in .venv, made from the lock files that fit this machine.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help repro queue serve setup test wheel lint format lock

PYTHON ?= python3
BIN := .venv/bin
# Where nvidia-smi finds a GPU, spconv comes with its CUDA kernels.
ifndef DEVICE
DEVICE := $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
endif
LOCK := requirements-$(DEVICE).lock
# The wheel of torch differs from index to index and pip wants a hash of all or of none, hence a file of its own.
TORCH := requirements-torch.lock
SETUP := .venv/.installed-$(DEVICE)

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

# DVC starts stages by the user's shell, which may be none (nologin).
repro: $(SETUP) ## set up, then bring every result up to date (dvc repro)
	$(BIN)/python -m tasks.inputs
	SHELL=/bin/sh $(BIN)/dvc repro

# Its workers start dvc by its name.
queue: $(SETUP) ## work on what `dvc exp run --queue` queued (JOBS=2: two at a time)
	SHELL=/bin/sh PATH="$(CURDIR)/$(BIN):$$PATH" dvc queue start --jobs $(or $(JOBS),1)

serve: $(SETUP) ## Prefect's server, deployment and worker on this machine, until Ctrl-C
	@$(BIN)/python -m flows.serve

setup: $(SETUP) ## make .venv with what the lock files say

# Many tests wait for programs that they start, so three run at a time, beside lint; who is done takes over some of the
# other's.
test: $(SETUP) ## lint and all tests
	$(MAKE) --no-print-directory lint & \
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n 3 --dist worksteal; \
	wait $$! || { echo "lint failed: what it found stands above, among the tests' lines"; exit 1; }

wheel: $(SETUP) ## the library and its tokenizer as others install them, in dist/
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

lint: $(SETUP) ## ruff, mypy and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(SETUP) ## let ruff put right what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Other indexes may call the same torch by a local version such as +cpu, which is left out.
lock: $(SETUP) ## resolve pyproject.toml into the lock files (UPGRADE=1: to the newest versions)
	for device in cpu cuda; do \
		$(BIN)/pip-compile --quiet --extra $$device --extra pipeline --extra s3 --extra dask --extra dev --strip-extras --no-header --annotation-style line \
			--generate-hashes --allow-unsafe --unsafe-package pip \
			--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
			$(if $(UPGRADE),--upgrade,--constraint $(TORCH)) --output-file requirements-$$device.lock pyproject.toml; \
		sed -nE -e '1i # Made by `make lock` from pyproject.toml.' -e 's/^(torch==[^ +]+).*/\1/p' requirements-$$device.lock > $(TORCH); \
		sed -i -e '1i # Made by `make lock` from pyproject.toml.' -e '/^# Made by/d' -e '/^torch==/,/ # via /d' requirements-$$device.lock; \
	done

# Done once, and again when a lock file changes. The two builds of spconv overwrite each other, so a change of device starts
# from nothing. pip would compile every file to byte code, one after the other; what is left out here is compiled when it
# is imported, and what can't be compiled are others' templates. The constraint is for what the lock pins and others ask for
# with an extra (sqlalchemy[asyncio]): without it, pip 23.2 takes the newest of that, which has no hash. The lock's own pip
# comes first: Python 3.11's, 23.2, compares every file of an index with every tag of this machine, for half a minute.
$(SETUP): $(LOCK) $(TORCH)
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed, for which spconv is built, and %s is %s; run make PYTHON=python3.13" % (sys.executable, sys.version.split()[0]))'
	$(PYTHON) -m venv $(if $(filter-out $(SETUP),$(wildcard .venv/.installed-*)),--clear) .venv
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --require-hashes --requirement <(sed -n '/^pip==/,/[^\]$$/p' $(LOCK))
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --require-hashes --requirement $(LOCK) --constraint $(LOCK)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --requirement $(TORCH)
	$(BIN)/python -m compileall -qq -j 0 -x '/(moto|sympy|tests)/' .venv/lib || true
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .  # shape-tokenizer
	touch $@
