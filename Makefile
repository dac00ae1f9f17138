# Two commands do all the set-up: `make reproduce` tests the claims, `make test` tests the package.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: reproduce test check bench clean

reproduce: .venv/lab
	$(BIN)/nonsmooth reproduce

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 25

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python benchmarks/simulate.py
	$(BIN)/python benchmarks/proximal.py
	$(BIN)/python benchmarks/exactness.py

clean:
	rm -rf .venv out

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "nonsmooth needs Python 3.11 or newer"'
	$(PYTHON) -m venv .venv

.venv/lab: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[lab,torch]'
	touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[lab,torch,theory,scale,dev]'
	touch .venv/lab $@
