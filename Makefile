# Two commands for a fresh machine: `make quickstart` and `make test`. Both set up `.venv` first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup quickstart test lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[quickstart,test]'
	touch $@

quickstart: setup
	$(BIN)/kdfw run recipes/quickstart.yaml --out runs/quickstart

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
