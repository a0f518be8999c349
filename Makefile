# Two commands matter, each alone on a fresh clone of a machine that has only Python and make:
#   make demo    teach the embedded emoji generator to draw pictures that compress well, on two CPU cores
#   make test    everything the project promises, checked
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
RUN := runs/demo

.PHONY: demo test lint format clean help

help:
	@sed -n '2,3s/^# *//p' Makefile

demo: $(VENV)/.installed
	$(BIN)/burnish train demo --out $(RUN) $(if $(wildcard $(RUN)/config.toml),--resume)
	$(BIN)/burnish report $(RUN)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(RUN) .pytest_cache .mypy_cache .ruff_cache

# Stamps: a second call finds them newer than what they depend on and starts at once. torch comes first and alone, so
# that no other package chooses its build.
$(VENV)/.torch: constraints.txt
	@$(PY) -c 'import sys; sys.exit("Burnish needs Python 3.10 or newer: make PY=python3.11 ...") if sys.version_info < (3, 10) else None'
	@test -x $(BIN)/python || $(PY) -m venv $(VENV)
	@echo "Installing torch into $(VENV) (a few minutes, once)"
	@$(PIP) install "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "Installing burnish and what it needs"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "Installing the tools for tests"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# The documentation as a site, in site/; its tools have an environment of their own.
.PHONY: docs
docs: $(VENV)-docs/.installed
	$(VENV)-docs/bin/mkdocs build --strict --quiet

$(VENV)-docs/.installed: pyproject.toml
	@test -x $(VENV)-docs/bin/python || $(PY) -m venv $(VENV)-docs
	@$(VENV)-docs/bin/python -m pip --disable-pip-version-check --quiet install $$($(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@
