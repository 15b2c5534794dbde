# `make quickstart` and `make test` install everything that they need into .venv. They require Python 3.11, git and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Written after an installation; make installs again when pyproject.toml or constraints.txt is newer.
STAMP := $(VENV)/.installed
MODELS_STAMP := $(VENV)/.installed-models
OUT ?= runs/quickstart

.PHONY: quickstart test test-all chromium lint format docs clean

# The quickstart needs only the extra `models`, not the tools for development.
quickstart: $(if $(wildcard $(STAMP)),$(STAMP),$(MODELS_STAMP))
	$(BIN)/spr quickstart --out $(OUT)

# Two workers with one thread each, because threads compete if there are more of them than cores. All tests of a file run in
# one worker, so that what they share is made once.
test: $(STAMP) chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

# All tests, with a coverage report in htmlcov/ and the slowest tests listed.
test-all: $(STAMP) chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q --durations=25 --cov=spr --cov-report=term --cov-report=html

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

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

$(MODELS_STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[models]'
	touch $@

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@

clean:
	rm -rf $(VENV) site runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov
