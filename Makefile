# One target a task; each makes what it needs and nothing twice. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A wheel index for torch and torchvision, for a machine that needs another build than the default one:
# make demo TORCH_INDEX=<the CPU index that pytorch.org names>
TORCH_INDEX ?=
# The base of the images, where the public one cannot be had: make demo-docker BASE=document-classifier-base:bookworm
BASE ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet --constraint images/constraints.txt
SOURCES := launcher trainer tests
# Set in some containers: each of a hundred processes would compile all that it imports.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo demo-docker test test-full test-gpu lint format bench memory-table docs pictures clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## the virtual environment .venv, with everything

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version): 3.11 or newer is needed; say make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "python3 -m venv failed: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@touch $@

# The launcher alone: enough to build images and run jobs in them.
$(VENV)/.launcher: pyproject.toml images/constraints.txt | $(VENV)/.python
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed: pyproject.toml images/constraints.txt | $(VENV)/.python
	@echo "installing into $(VENV) (a few minutes the first time)"
	@test -z "$(TORCH_INDEX)" || $(PIP) --index-url "$(TORCH_INDEX)" torch torchvision
	@$(PIP) --editable '.[train,dev]'
	@touch $@ $(VENV)/.launcher

demo: install ## draw documents, train two models, ensemble them: the whole path in a few minutes
	@test -d build/demo/documents || $(BIN)/python -m trainer sample-data build/demo/documents --classes 10 --per-class 24
	$(BIN)/launcher submit jobs/quickstart.yaml --engine native --data build/demo/documents --runs build/demo/runs

demo-docker: $(VENV)/.launcher ## the same in containers: builds the CPU image; the host needs Docker, and no torch
	$(BIN)/launcher build cpu $(if $(BASE),--base $(BASE)) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX))
	@mkdir -p build/demo
	@test -d build/demo/documents || docker run --rm --network none --user "$$(id -u):$$(id -g)" \
		-v "$(CURDIR)/build/demo:/demo" document-classifier:cpu sample-data /demo/documents --classes 10 --per-class 24
	$(BIN)/launcher submit jobs/quickstart.yaml --engine docker --data build/demo/documents --runs build/demo/docker-runs

test: install ## what CI runs: every test but the slow ones and those of a GPU
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses 2 --dist loadscope --no-loadscope-reorder

test-full: install ## every test, the slow ones too; prints their figures
	$(BIN)/python -m pytest -s

test-gpu: install ## what only an NVIDIA GPU can show, in a few minutes
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0} $(BIN)/python -m pytest -s -m gpu

lint: install ## formatting, lint, types and the order of the rooms
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install ## format and mend what can be mended
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: install ## ratios of loading and training speed, measured in one run; simulated makespans; a plan of 10,000 runs
	$(BIN)/python -m tests.simulate_scheduler
	$(BIN)/python -m tests.launcher.cli.test_planning
	$(BIN)/python -m trainer bench
	$(BIN)/python -m tests.bench_containers

memory-table: install ## trace the six models' training memory anew: launcher/memory/memory_table.csv, in 15 minutes
	$(BIN)/python -m trainer estimate --table launcher/memory/memory_table.csv

docs: install ## what docs/ has from the code: the job file's fields, the states, the rooms and their picture
	$(BIN)/python -m tests.made_docs

build/demo/runs/champion/best_model.ckpt:
	$(MAKE) demo

pictures: install build/demo/runs/champion/best_model.ckpt ## the README's two pictures, from the demo's results (needs Chromium)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.pictures build/demo

clean: ## what make made, but for .venv and runs/
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis
