# Two commands do all the set-up: `make quickstart` and `make test`. Both need only Python 3.11, git and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# What an install depends on; the stamp holds for the files it was made from.
STAMP := $(VENV)/.installed
OUT ?= runs/quickstart

.PHONY: quickstart test chromium lint format docs clean

quickstart: $(STAMP)
	$(BIN)/spr quickstart --out $(OUT)

# Two workers of one thread each: more threads than cores wait for each other.
test: $(STAMP) chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

# The report is tested in a browser. Without one those tests are skipped, or fail where CI=true.
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

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@

clean:
	rm -rf $(VENV) site runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
