# Two commands do everything on a fresh machine: `make demo` and `make test`. Both build their own .venv.
PYTHON ?= python3
JOBS ?= 2               # processes that tests run in, one thread each
FAISS ?= cpu            # cpu or gpu: never both, they own the same files
VENV := .venv
BIN := $(VENV)/bin
EXTRA := $(strip $(FAISS))
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-slow check format bench docs clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing bindsearch[$(EXTRA)] into $(VENV) (torch is a few GB)"
	$(PIP) --editable '.[$(EXTRA)]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "installing what tests and checks need into $(VENV)"
	$(PIP) --editable '.[$(EXTRA),open-clip,dev]'
	@touch $@

$(VENV)/.llm: $(VENV)/.base
	@echo "installing the language model's packages into $(VENV)"
	$(PIP) --editable '.[$(EXTRA),llm]'
	@touch $@

demo: $(VENV)/.llm
	$(BIN)/python examples/demo.py demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

docs: $(VENV)/.dev
	$(BIN)/python tools/make_docs.py

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache
