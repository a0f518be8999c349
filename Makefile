# Each works alone on a fresh clone of a machine that has only Python and make:
#   make demo         train the embedded emoji generator to draw images that compress well, on two CPU cores
#   make test         everything the project promises, checked; ARGS="tests/test_kernels.py -x" narrows it
#   make gpu          the tests that need a CUDA device, which `make test` skips without one
#   make test-latest  the same tests against the newest releases that pyproject.toml allows; warnings are only shown
#   make lint         ruff, ruff's format, mypy; `make format` fixes what can be fixed
#   make lock         choose the versions that the others install anew: requirements/*.txt
# On Linux the torch of PyPI brings 5 GB of CUDA. For the CPU build: make demo TORCH_INDEX=ADDRESS, the address that
# pytorch.org's install page shows for CPU. It counts where torch is installed: once, and after its version changed.
PY ?= python3
VENV := .venv
LATEST := .venv-latest
BIN := $(VENV)/bin
QUIET := -m pip --disable-pip-version-check --quiet
PIP := $(BIN)/python $(QUIET)
RUN := runs/demo
WORKERS ?= 2
TORCH_INDEX ?=
FROM = $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
PIN := $(shell grep '^torch==' constraints.txt)
TORCH ?= $(PIN)
UV := uv==0.13.9

.PHONY: demo test gpu test-latest lint format lock clean help

help:
	@sed -n '1,9s/^# *//p' Makefile

demo: $(VENV)/.installed
	$(BIN)/burnish train demo --out $(RUN) $(if $(wildcard $(RUN)/config.toml),--resume)
	$(BIN)/burnish report $(RUN)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu $(ARGS)

test-latest:
	@$(PY) -m venv $(LATEST)
	@echo "Installing the newest of everything but torch into $(LATEST)"
	@$(LATEST)/bin/python $(QUIET) install $(FROM) "$(TORCH)"
	@$(LATEST)/bin/python $(QUIET) install --upgrade --upgrade-strategy eager "$(TORCH)" -e '.[dev]'
	$(LATEST)/bin/python -m pytest -n $(WORKERS) -W default $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(RUN) .pytest_cache .mypy_cache .ruff_cache

# The versions and hashes of everything but torch, for all platforms and Pythons: run.txt for use, dev.txt for tests too.
# cuda.txt: the versions of what comes with PyPI's torch where it comes with CUDA. They only bound it, and have no
# hashes: pip would then want those of every build of torch.
COMPILE := UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --no-config --universal \
	--python-version 3.11 --upgrade --no-emit-index-url
LOCK := $(COMPILE) --generate-hashes --override requirements/override.txt \
	pyproject.toml requirements/torch.in requirements/build.in

lock: $(VENV)/.made
	@$(PIP) install "$(UV)"
	$(LOCK) --output-file requirements/run.txt
	$(LOCK) --output-file requirements/dev.txt --extra dev --constraints requirements/run.txt
	$(COMPILE) --output-file requirements/cuda.txt constraints.txt --constraints requirements/run.txt --no-emit-package torch

# Stamps: a second call finds them newer than what they depend on and starts at once. First what is locked, then torch,
# which finds the small packages it needs there already, then burnish, built by what is locked.
$(VENV)/.made:
	@$(PY) -c 'import sys; sys.exit("Burnish needs Python 3.11 or newer: make PY=python3.11 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PY) -m venv $(VENV)
	@touch $@

$(VENV)/.locked: $(VENV)/.made requirements/run.txt
	@echo "Installing what burnish needs into $(VENV)"
	@$(PIP) install --require-hashes --no-deps -r requirements/run.txt
	@touch $@

$(VENV)/.torch: $(VENV)/.locked constraints.txt requirements/cuda.txt
	@echo "Installing torch (a few minutes, once)"
	@$(PIP) install $(or $(FROM),-c requirements/cuda.txt) "$(PIN)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed requirements/dev.txt
	@echo "Installing the tools for tests"
	@$(PIP) install --require-hashes --no-deps -r requirements/dev.txt
	@touch $@

# The documentation as a site, in site/; its tools have an environment of their own.
.PHONY: docs
docs: $(VENV)-docs/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet

$(VENV)-docs/.installed: pyproject.toml
	@test -x $(VENV)-docs/bin/python || $(PY) -m venv $(VENV)-docs
	@$(VENV)-docs/bin/python -m pip --disable-pip-version-check --quiet install $$($(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@
