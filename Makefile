# Two commands for a newcomer: `make train` and `make test`. The rest serves them.

PYTHON ?= python3
RUN ?= runs/demo
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: train test lint assurance clean

train: $(READY)  ## train the demonstration, with one contributor that cheats
	$(BIN)/barnraise train --config configs/demo.toml --run $(RUN) --adversary lazy=1

test: $(READY)  ## all tests, a process a core
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

assurance: $(READY)  ## every figure of docs/assurance.md, measured again; takes hours
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,dev,assurance]'
	$(BIN)/python -m assurance --full --write

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("barnraise needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV)
