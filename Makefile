# make demo · make test · make lint · make docs · make bench: each sets up .venv by itself when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each distribution under integrations/ brings a `test` extra and its own settings for pytest and mypy.
INTEGRATIONS := $(patsubst %/pyproject.toml,%,$(wildcard integrations/*/pyproject.toml))
STAMP_ALL := $(VENV)/.installed-integrations
STAMP_DOCS := $(VENV)/.installed-docs
# What each integration does by itself, on a core of its own.
SIDE_BY_SIDE := --no-print-directory -j $(shell getconf _NPROCESSORS_ONLN)
SIDE_BY_SIDE += $(if $(filter output-sync,$(.FEATURES)),--output-sync)
# Without compiled files, each process of the tests compiles anew what it imports.
unexport PYTHONDONTWRITEBYTECODE
# What is imported is compiled then; all of it takes a minute.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs bench quality clean $(INTEGRATIONS:=/test) $(INTEGRATIONS:=/types)

help:
	@echo "make demo    index 40 long documents and answer questions about them (no network after set-up)"
	@echo "make test    the test suite"
	@echo "make lint    ruff and mypy"
	@echo "make docs    the documentation site, in site/"
	@echo "make bench   speed and memory on this machine's CPU, against the reference algorithm and BERT-base (15 minutes)"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
	touch $(STAMP)

$(STAMP_ALL): $(STAMP) $(INTEGRATIONS:=/pyproject.toml)
	$(INSTALL) \
		$(foreach folder,$(INTEGRATIONS),-e './$(folder)[test]')
	touch $(STAMP_ALL)

$(STAMP_DOCS): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[docs]'
	touch $(STAMP_DOCS)

demo: $(STAMP)
	$(BIN)/m2rag demo

# One process per core, one thread in each: together they are as many as there are cores.
test: export OMP_NUM_THREADS := 1
test: $(STAMP_ALL)
	$(BIN)/python -m pytest -q -n auto --dist worksteal
	$(MAKE) $(SIDE_BY_SIDE) $(INTEGRATIONS:=/test)

$(INTEGRATIONS:=/test):
	cd $(@D) && $(abspath $(BIN))/python -m pytest -q

lint: $(STAMP_ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) $(SIDE_BY_SIDE) types $(INTEGRATIONS:=/types)

types:
	$(BIN)/mypy

$(INTEGRATIONS:=/types):
	cd $(@D) && $(abspath $(BIN))/mypy

# The theme's makers announce another product at every build.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(STAMP_DOCS)
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html; with its search: $(BIN)/python -m http.server --directory site"

bench: $(STAMP)
	$(BIN)/python benchmarks/cpu.py

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
