# make demo   the three stages and a control arm, two workers; runs/demo/report.html        make test   the tests
#             RECIPE=configs/recipe.py:metaworld or :mt10 has other tasks
# make kill-test   kills training runs at random moments, KILLS times, and compares where they end
# make interop   the rlds library over a dataset of ours, openpi's client with our server, each in its own environment
# make study-pilot   two cells and two seeds of the study, two workers, about an hour; runs/pilot/report.html
# All make .venv and install into it first. VENV=path and PYTHON=python3.12 choose others.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
KILLS ?= 20
# Processes; tests compile on one core each, and take some 4 GB.
WORKERS ?= 2
RECIPE ?= configs/recipe.py
DEMO := launch/recipe.py --config=$(RECIPE)
PILOT := launch/study.py --config=configs/study.py:pilot
# What the rlds library was last released for; another Python has none of its wheels.
INTEROP_PYTHON ?= python3.11
INTEROP_VENV ?= $(VENV)-interop
OPENPI_VENV ?= $(VENV)-openpi

.PHONY: demo study-pilot test kill-test lint interop interop-rlds interop-openpi check-system clean

demo: check-system $(VENV)/.installed
	$(BIN)/python $(DEMO) & $(BIN)/python $(DEMO) && wait

study-pilot: check-system $(VENV)/.installed
	$(BIN)/python $(PILOT) & $(BIN)/python $(PILOT) && wait
	$(BIN)/python $(PILOT) --report

test: check-system $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

kill-test: $(VENV)/.installed
	$(BIN)/python -m tests.kill_training --kills=$(KILLS)

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

interop: interop-rlds interop-openpi

interop-rlds: check-system $(VENV)/.installed $(INTEROP_VENV)/.installed
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	$(BIN)/python -m data_builders.metaworld_etc --out=$$out --tasks=drawer-open --episodes=2 --held_out=0 --image_size=48 && \
	$(BIN)/python -m tests.interop.expected $$out/metaworld_etc/* $$out/expected.npz && \
	$(INTEROP_VENV)/bin/python tests/interop/rlds_transformations.py $$out/expected.npz

interop-openpi: check-system $(VENV)/.installed $(OPENPI_VENV)/.installed
	$(BIN)/python -m tests.interop.serving $(OPENPI_VENV)/bin/python

$(INTEROP_VENV)/.installed: tests/interop/requirements.txt
$(OPENPI_VENV)/.installed: tests/interop/requirements_openpi.txt
$(INTEROP_VENV)/.installed $(OPENPI_VENV)/.installed:
	$(INTEROP_PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --progress-bar off -r $<
	@touch $@

# With the system's Python alone, so that a missing library is the first thing said, before anything is installed.
check-system:
	@$(PYTHON) launch/check_system.py

$(VENV)/.installed: setup.py
	@echo "installing into $(VENV): one to five minutes, some 3 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar off -e '.[sim,build,publish,serve,dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(INTEROP_VENV) $(OPENPI_VENV) runs data
