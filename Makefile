# Two commands do everything on a machine with Python 3.11 and make: `make demo` and `make test`.
#
# torch from PyPI brings CUDA along on Linux, some gigabytes that nothing here needs. The CPU build:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DEMOS := digits-keras digits-torch

.DEFAULT_GOAL := help
.PHONY: help demo test lint install docs clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

install: $(READY)  ## make .venv and install edgeopt with everything it can use

# The stamp is written last: an installation that was cut off is done again.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11, or: make PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "this Python cannot make an environment; on Debian: apt install python3.11-venv"; exit 2; }
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[all,test]'
	@touch $@

demo: $(READY)  ## optimize the two small models that come with edgeopt, and say where the reports are
	@for name in $(DEMOS); do \
	  $(BIN)/edgeopt optimize recipes/$$name.yaml --out artifacts/runs/$$name || exit $$?; \
	  ln -sfn $$name artifacts/runs/latest; \
	done
	@for name in $(DEMOS); do echo "report: artifacts/runs/$$name/report.html"; done

lint: $(READY)  ## style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@mkdir -p $(VENV)/agent && ln -sfn ../../pipeline/edgeopt/devices/agent $(VENV)/agent/edgeopt_agent
	MYPYPATH=$(VENV)/agent $(BIN)/mypy --package edgeopt_agent
	PYTHONPATH=pipeline $(BIN)/lint-imports

test: lint  ## lint, then all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: $(READY)  ## write the JSON Schemas and the generated parts of docs/ again
	$(BIN)/python docs/generate.py

clean:  ## remove the environment and the caches; artifacts/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
	find pipeline tests recipes benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
