# One target per task. Each target builds its requirements if they are missing. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A wheel index for torch and torchvision, if the machine needs another build than the default:
# make demo TORCH_INDEX=<the CPU index from pytorch.org>
TORCH_INDEX ?=
# The base image, if the public one is not available: make demo-docker BASE=document-classifier-base:bookworm
BASE ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet --constraint images/constraints.txt
SOURCES := launcher trainer tests
# Some containers set it. Then each of a hundred processes compiles all its imports.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo demo-docker test test-full test-gpu lint format bench memory-table docs pictures clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make the virtual environment .venv and install everything in it

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version): version 3.11 or newer is required; run make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "python3 -m venv failed; on Debian and Ubuntu run: apt-get install python3-venv"; exit 1; }
	@touch $@

# Only the launcher. It can build images and run jobs in them.
$(VENV)/.launcher: pyproject.toml images/constraints.txt | $(VENV)/.python
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed: pyproject.toml images/constraints.txt | $(VENV)/.python
	@echo "installing into $(VENV) (a few minutes the first time)"
	@test -z "$(TORCH_INDEX)" || $(PIP) --index-url "$(TORCH_INDEX)" torch torchvision
	@$(PIP) --editable '.[train,dev]'
	@touch $@ $(VENV)/.launcher

demo: install ## draw documents, train two models, join them in an ensemble; takes a few minutes
	@test -d build/demo/documents || $(BIN)/python -m trainer sample-data build/demo/documents --classes 10 --per-class 24
	$(BIN)/launcher submit jobs/quickstart.yaml --engine native --data build/demo/documents --runs build/demo/runs

demo-docker: $(VENV)/.launcher ## the same in containers; builds the CPU image; the host needs Docker, but not torch
	$(BIN)/launcher build cpu $(if $(BASE),--base $(BASE)) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX))
	@mkdir -p build/demo
	@test -d build/demo/documents || docker run --rm --network none --user "$$(id -u):$$(id -g)" \
		-v "$(CURDIR)/build/demo:/demo" document-classifier:cpu sample-data /demo/documents --classes 10 --per-class 24
	$(BIN)/launcher submit jobs/quickstart.yaml --engine docker --data build/demo/documents --runs build/demo/docker-runs

test: install ## run all tests except slow tests and GPU tests, as CI does
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses 5 --dist loadscope --no-loadscope-reorder

test-full: test ## run all tests: `make test`, then slow tests and GPU tests, with their figures
	$(BIN)/python -m pytest -s -m "slow or gpu" --durations 0 --durations-min 1

test-gpu: install ## run the tests that need an NVIDIA GPU; takes a few minutes
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0} $(BIN)/python -m pytest -s -m gpu

lint: install ## check formatting, lint, types and the import order of the packages
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install ## format the code, and fix lint errors that ruff can fix
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: install ## measure loading and training speed; simulate schedules; plan 10,000 runs
	$(BIN)/python -m tests.simulate_scheduler
	$(BIN)/python -m tests.launcher.cli.test_planning
	-$(BIN)/python -m tests.bench_scale
	$(BIN)/python -m trainer bench
	$(BIN)/python -m tests.bench_containers

memory-table: install ## trace the six models again and write launcher/memory/memory_table.csv; takes 15 minutes
	$(BIN)/python -m trainer estimate --table launcher/memory/memory_table.csv

docs: install ## update the generated parts of docs/: job file fields, states, packages and their diagram
	$(BIN)/python -m tests.made_docs

build/demo/runs/champion/best_model.ckpt:
	$(MAKE) demo

pictures: install build/demo/runs/champion/best_model.ckpt ## make the two pictures of the README from the demo (needs Chromium)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.pictures build/demo

clean: ## remove build files; keeps .venv and runs/
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis
