# One command for each job, from a fresh clone; each makes what it needs.
#   make demo    train a small GPT three ways and draw the result   (LR= TEXT= STEPS= SEED=)
#   make test    every test
#   make check   format, lint, types
#   make bench   one optimizer step, side by side
#   make venv    the environment in .venv, installed and built, nothing run

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILT := $(VENV)/.built
INSTALLED := $(VENV)/.installed
SOURCES := $(wildcard csrc/*) setup.py pyproject.toml

.PHONY: venv demo test check bench format clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

$(INSTALLED): requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "adaptiverl needs Python 3.10 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(BUILT): $(INSTALLED) $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@$(BIN)/python -c 'from adaptiverl import dispatch; print(dispatch.describe())'
	@touch $@

venv: $(BUILT)

demo: $(BUILT)
	$(BIN)/python -m bench.demo

test: $(BUILT)
	$(BIN)/pytest

bench: $(BUILT)
	$(BIN)/python -m bench.step

check: $(BUILT)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror csrc/*

format: $(BUILT)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i csrc/*

clean:
	rm -rf $(VENV) build dist runs *.egg-info adaptiverl/*.so
