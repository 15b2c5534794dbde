# `make quickstart`, `make test` and `make docs` install what they need, and no more, into .venv. They require Python 3.11, git
# and make. INSTALL is pip, which shows what it downloads; `make quickstart INSTALL_OPTIONS=-q` is quiet.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Written after an installation; make installs again when pyproject.toml or constraints.txt is newer.
STAMP := $(VENV)/.installed
MODELS_STAMP := $(VENV)/.installed-models
DOCS_STAMP := $(VENV)/.installed-docs
INSTALL_OPTIONS ?=
INSTALL = $(BIN)/python -m pip install $(INSTALL_OPTIONS) --disable-pip-version-check -c constraints.txt
OUT ?= runs/quickstart

.PHONY: quickstart test test-slow test-all chromium lint format docs clean

# The quickstart needs only the extra `models`, not the tools for tests and documentation.
quickstart: $(if $(wildcard $(STAMP))$(filter lint format test test-slow test-all,$(MAKECMDGOALS)),$(STAMP),$(MODELS_STAMP))
	$(BIN)/spr quickstart --out $(OUT)

# Two workers with one thread each, because threads compete if there are more of them than cores. All tests of a file run in
# one worker, so that what they share is made once. Files are taken in the order that tests/conftest.py gives them.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

# Each test is in one of these or is `long`, which only `make test-all` runs; tests/test_makefile.py checks it. A change must
# pass both, as .ci/run does. Modules that are compiled once make the second start, and processes that tests start, faster.
QUICK := not slow and not browser and not processes and not long
SLOW := (slow or browser or processes) and not long
unexport PYTHONDONTWRITEBYTECODE
test: $(STAMP)
	$(PYTEST) -m "$(QUICK)"

test-slow: $(STAMP) chromium
	$(PYTEST) -m "$(SLOW)" --durations=10

# All tests, with a coverage report in htmlcov/ and the slowest tests listed.
test-all: $(STAMP) chromium
	$(PYTEST) --durations=25 --cov=spr --cov-report=term --cov-report=html

# The report is tested in a browser. Without one, those tests are skipped, or fail if CI=true.
chromium:
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get update -q && apt-get install -y -q --no-install-recommends chromium; } >/dev/null || \
	    echo "Chromium could not be installed: the browser tests are skipped."; \
	else \
	  echo "No Chromium: the browser tests are skipped. To run them: sudo apt-get install -y chromium"; \
	fi

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(if $(wildcard $(STAMP))$(filter lint format test test-slow test-all,$(MAKECMDGOALS)),$(STAMP),$(DOCS_STAMP))
	$(BIN)/mkdocs build --strict

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(MODELS_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing SPR with PyTorch for the CPU or CUDA into $(VENV), once: about 1.6 GB on disk and 2 minutes with PyTorch's CPU"
	@echo "build (macOS), about 3 GB more to download with its CUDA build (Linux; to avoid it, see docs/installation.md)."
	$(INSTALL) -e '.[models]'
	touch $@

$(DOCS_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing SPR and the tools for its documentation into $(VENV), once."
	$(INSTALL) -e '.[docs]'
	touch $@

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing SPR and the tools for tests and documentation into $(VENV), once: about 2 GB on disk, 3 minutes."
	$(INSTALL) -e '.[dev,docs]'
	touch $@

clean:
	rm -rf $(VENV) site runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov
