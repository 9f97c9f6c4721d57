# The two commands: `make demo` and `make test`. Each sets up .venv from the lock when it must, and does its work.
.PHONY: demo test test-slow chaos check lint types imports lock dev bench bench-quick clean help
.DEFAULT_GOAL := help

PYTHON ?= python3
# Which torch and fbgemm: `make demo DEVICE=cpu` overrides what is found here.
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
VENV   := .venv
BIN    := $(VENV)/bin

help:
	@echo "make demo   set up, then logs -> model -> report -> registry into runs/demo (under 5 minutes on 2 cores)"
	@echo "make test   set up, then the tests (under 10 minutes on 2 cores); make test-slow for the longer ones"
	@echo "make chaos  kill, starve and damage every command, and feed it what is hostile (an hour on 2 cores)"
	@echo "make check  ruff, mypy --strict, import-linter"
	@echo "make bench  recmtl's speed beside its peers and the machine's limit (an hour); make bench-quick: two minutes"
	@echo "make lock   write requirements/ anew: locks, bills of materials, licences; UPGRADE=all or UPGRADE=\"polars rich\""

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "recmtl needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

LOCKS  := requirements/$(DEVICE).txt requirements/torch-cpu.txt requirements/torch-cuda.txt

# One environment holds one device: a stamp of the other one is void.
$(VENV)/.run-$(DEVICE): $(LOCKS) requirements/install.sh pyproject.toml | $(BIN)/python
	@bash requirements/install.sh $(BIN)/python $(DEVICE)
	@rm -f $(VENV)/.run-*
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run-$(DEVICE)
	@bash requirements/install.sh $(BIN)/python dev
	@touch $@

dev: $(VENV)/.dev

demo: $(VENV)/.run-$(DEVICE)
	$(BIN)/recmtl run pipelines/configs/demo.yaml

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not chaos"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m "slow and not chaos"

# CHAOS="--share 0.1 --seed 7": a tenth of it, drawn otherwise.
chaos: $(VENV)/.dev
	$(BIN)/python -m tests.chaos $(CHAOS)

check: lint types imports

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports

lock: $(VENV)/.dev
	UV=$(BIN)/uv $(BIN)/python requirements/lock.py $(UPGRADE)

# The peers live in environments of their own under runs/benchmarks/speed/peers; they are made on the first call.
bench: $(VENV)/.run-$(DEVICE)
	$(BIN)/python benchmarks/speed/run.py --device $(DEVICE)

bench-quick: $(VENV)/.run-$(DEVICE)
	$(BIN)/python benchmarks/speed/run.py --device $(DEVICE) --quick

clean:
	rm -rf $(VENV) build *.egg-info
