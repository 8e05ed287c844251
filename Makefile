# Requires only Python 3.11 and make. Start with `make demo` or `make test`.
#
# On Linux, PyPI serves torch with CUDA, several gigabytes that are not needed here. For the CPU build:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DEMOS := digits-keras digits-torch

.DEFAULT_GOAL := help
.PHONY: help demo cluster-demo check lint unit test install docs site release versions clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15

install: $(READY)  ## create .venv and install edgeopt with all extras

# The stamp is written last: an interrupted installation is repeated.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11, or: make PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "this Python cannot create an environment; on Debian: apt install python3.11-venv"; exit 2; }
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[all,test]'
	@touch $@

demo: $(READY)  ## optimize the two shipped models and print the paths of the reports
	@for name in $(DEMOS); do \
	  $(BIN)/edgeopt optimize recipes/$$name.yaml --out artifacts/runs/$$name || exit $$?; \
	  ln -sfn $$name artifacts/runs/latest; \
	done
	@for name in $(DEMOS); do echo "report: artifacts/runs/$$name/report.html"; done

cluster-demo: $(READY)  ## optimize a shipped model on a cluster of two nodes on this machine
	$(BIN)/python deploy/cluster_demo.py

check:  ## style, types, layers, wording and the fast tests, in under a minute
	@$(MAKE) --no-print-directory -j2 --output-sync=target lint unit

lint: $(READY)  ## style, types, layers and wording
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python docs/words.py
	PYTHONPATH=pipeline $(BIN)/lint-imports
	$(BIN)/mypy
	@mkdir -p $(VENV)/agent && ln -sfn ../../pipeline/edgeopt/devices/agent $(VENV)/agent/edgeopt_agent
	@ln -sfn ../../pipeline/edgeopt/formats/untrusted $(VENV)/agent/edgeopt_untrusted
	MYPYPATH=$(VENV)/agent $(BIN)/mypy --package edgeopt_agent

unit: $(READY)  ## the fast tests: no framework, no worker process
	$(BIN)/python -m pytest -q -m "not slow" tests/unit tests/contract

test: lint  ## lint, then all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: $(READY)  ## regenerate the JSON Schemas and the generated parts of docs/
	$(BIN)/python docs/generate.py

site: $(READY)  ## build the documentation as a site in build/site; broken links fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open it with: $(BIN)/python -m http.server --directory build/site"

release: $(READY)  ## build wheel and source distribution in dist/, and check them in a fresh environment
	rm -rf dist
	$(BIN)/python -m hatchling build --directory dist
	EDGEOPT_DIST=dist $(BIN)/python -m pytest -q tests/integration/test_pull.py

versions:  ## the fast tests and a recipe under every other Python that this machine has
	.ci/versions

clean:  ## remove the environment and the caches, but not artifacts/
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
	find pipeline tests recipes benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
