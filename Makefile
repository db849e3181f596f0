# make demo   from nothing to runs/demo/report.html        make test   the tests
# Both make .venv and install into it first. VENV=path and PYTHON=python3.12 choose others.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
RECIPE ?= configs/recipe.py

.PHONY: demo test lint check-system clean

demo: check-system $(VENV)/.installed
	$(BIN)/python launch/recipe.py --config=$(RECIPE)

test: check-system $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .

# With the system's Python alone, so that a missing library is the first thing said, before anything is installed.
check-system:
	@$(PYTHON) launch/check_system.py

$(VENV)/.installed: setup.py
	@echo "installing into $(VENV): one to five minutes, some 3 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar off -e '.[sim,build,dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs data
