# One command for each job, from a fresh clone; each makes what it needs.
#   make demo    train a small GPT four ways and draw the result    (LR= TEXT= STEPS= SEED=)
#   make ddp     the demo on two ranks of this machine              (RANKS=, and as above)
#   make test    every test, on every core                          (ARGS= for pytest)
#   make check   format, lint, types
#   make bench   one optimizer step, side by side                  (ARGS= for more)
#   make scenarios  what the knobs do when training improves, stalls, breaks or shifts
#   make lr-robustness  every method from four starting rates, on three tasks (ARGS= for more)
#   make study   does it work? the pre-registered study's quick form (ARGS=--full: an hour on two cores)
#   make rl      PPO by ten methods from three starting rates       (ARGS="--quick", "--full")
#   make codegen    the kernels' machine code for four GPUs, read without one
#   make docs    the pages as a site in build/site; dead links and snippets that do not run fail
#   make gpu     everything that only a GPU can show, as one report (PYTHON= one with torch for CUDA)
#   make cuda-stack  the wheel under a CUDA build of torch and two others, without a GPU (STACKS=)
#   make doors   the other frameworks' ways in, trained and resumed  (ARGS= for pytest)
#   make wheels  what is published, into dist/: one wheel with the CUDA controller, and the sources
#   make venv    the environment in .venv, installed and built, nothing run
# The first to run installs what it needs: torch for the demo, and the tools for all else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILT := $(VENV)/.built
SITE_VENV := .venv-docs
DOORS_VENV := .venv-doors
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
PIP := $(BIN)/python -m pip --disable-pip-version-check install
SOURCES := $(wildcard csrc/*.* csrc/law/*) setup.py pyproject.toml

# A process for each core; every one loads torch. A file's tests may go to several.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: doors venv demo ddp test check bench scenarios lr-robustness study rl codegen docs site gpu cuda-stack \
	wheels format clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

$(INSTALLED): requirements-demo.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "adaptiverl needs Python 3.10 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@echo "Once: torch, matplotlib and little else into $(VENV), some 2.4 GB where torch comes with CUDA"
	$(PIP) -r requirements-demo.txt
	@touch $@

$(TOOLS): requirements.txt $(INSTALLED)
	@echo "Once: what the tests, the checks and the benchmarks need into $(VENV)"
	$(PIP) -r requirements.txt
	@touch $@

$(BUILT): $(INSTALLED) $(SOURCES)
	@echo "Compiling adaptiverl, a minute or two"
	$(PIP) --quiet --no-build-isolation --no-deps -e .
	@$(BIN)/python -c 'from adaptiverl import describe; print(describe())'
	@touch $@

venv: $(BUILT) $(TOOLS)

demo: $(BUILT)
	$(BIN)/python -m bench.demo

ddp: $(BUILT)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/torchrun --standalone --nproc-per-node=$${RANKS:-2} -m bench.demo

test: $(BUILT) $(TOOLS)
	$(BIN)/pytest $(PARALLEL) $(ARGS)

bench: $(BUILT) $(TOOLS)
	$(BIN)/python -m bench.step $(ARGS)

scenarios: $(BUILT) $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.scenarios

lr-robustness: $(BUILT) $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.lr_robustness $${ARGS:---quick}

study: $(BUILT) $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.study $(ARGS)

rl: $(BUILT) $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.rl $${ARGS:---quick}

codegen: $(BUILT) $(TOOLS)
	$(BIN)/python -m adaptiverl.kernels.codegen

# An environment of its own, of a few seconds: the site reads docstrings without importing the package.
$(SITE_VENV)/.installed: requirements-docs.txt
	$(PYTHON) -m venv $(SITE_VENV)
	$(SITE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

PAGES := tests/test_pages.py tests/test_snippets.py tests/test_method.py tests/test_examples.py

# The pages' tests run what they show; the build follows their links once more, as a reader does.
docs: $(BUILT) $(TOOLS)
	$(BIN)/pytest --quiet $(PAGES)
	$(MAKE) site

# Not --quiet, under which MkDocs counts no warning and so is not strict.
site: $(SITE_VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(SITE_VENV)/bin/mkdocs build --strict
	@echo "build/site/index.html"

# Not in .venv: it builds into build/gpu, downloads nothing, and uses the torch that is there.
gpu:
	PYTHON=$(PYTHON) bench/gpu.sh

# An environment of its own: frameworks that pin what they need, and torchvision for timm.
$(DOORS_VENV)/.installed: requirements-doors.txt $(SOURCES)
	$(PYTHON) -m venv $(DOORS_VENV)
	@echo "Once: the frameworks of docs/frameworks.md into $(DOORS_VENV), some 4 GB where torch comes with CUDA"
	$(DOORS_VENV)/bin/python -m pip --disable-pip-version-check install -r requirements-doors.txt
	DS_BUILD_OPS=0 $(DOORS_VENV)/bin/python -m pip --disable-pip-version-check install --no-build-isolation deepspeed==0.19.8
	$(DOORS_VENV)/bin/python -m pip --disable-pip-version-check install --no-deps axolotl==0.19.0
	@# PyPI's torchvision is for PyPI's torch; beside one without CUDA it breaks transformers, too.
	@$(DOORS_VENV)/bin/python -c 'import torchvision' 2>/dev/null || { \
		echo "This torch has no torchvision on the index: timm's door is left out"; \
		$(DOORS_VENV)/bin/python -m pip --quiet uninstall -y torchvision timm; }
	$(DOORS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-build-isolation --no-deps -e .
	@touch $@

doors: $(DOORS_VENV)/.installed
	PATH="$(CURDIR)/$(DOORS_VENV)/bin:$$PATH" $(DOORS_VENV)/bin/python -m pytest tests/test_doors.py $(ARGS)

# Builds one wheel, and keeps its environments: the first run installs some 10 GB.
cuda-stack: $(TOOLS)
	$(BIN)/python tests/cuda_stack.py $(STACKS)

# Builds one wheel, of the sources that it packs.
wheels: $(TOOLS)
	$(BIN)/python tests/wheels.py

check: $(BUILT) $(TOOLS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror csrc/*.* csrc/law/*
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --no-progress --persona pedantic .github/workflows

format: $(BUILT) $(TOOLS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i csrc/*.* csrc/law/*

clean:
	rm -rf $(VENV) $(SITE_VENV) $(DOORS_VENV) .venv-cuda .venv-newest build dist runs *.egg-info adaptiverl/*.so
