# The only list of commands. `make` alone prints it. Everything sets up what it needs first; a second run finds it done.
#
#   make run ONCE=1     end after the replay instead of serving on
#   make PYTHON=...     another Python (3.11 or newer) than python3.11 or python3
#   make test T=tests/ledger    only these tests

SHELL := /bin/sh
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
DONE := build/done
T ?= tests

# What the compiled modules are made from; the four files that the build itself writes are left out.
SOURCES := setup.py ledger/_generate.py ledger/limits.py ledger/errors.py $(shell find proto -name '*.proto') \
	$(filter-out $(addprefix ledger/,_limits.pxd _limits.h _status.pxd _status.h),\
	$(foreach room,ledger server bench,$(wildcard $(room)/*.pyx $(room)/*.pxd $(room)/*.pxi $(room)/*.h)))

.PHONY: help setup run test soak bench build lint annotate proto clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 20

setup: $(DONE)/project  ## system libraries, virtual environment, build: all that the others need

run: $(DONE)/project $(DONE)/demo  ## start the service and replay a grocery chain's year against it (ONCE=1: end there)
	$(PY) -m bench.demo $(if $(ONCE),--once)

test: $(DONE)/system-test $(DONE)/project  ## all tests, at most 10 minutes on 2 cores
	$(PY) -m pytest $(T) -n auto --maxprocesses 4 --dist loadfile --durations=10 </dev/null

soak: $(DONE)/system-test $(DONE)/project  ## the long loops: hundreds of kills, every injected fault
	$(PY) -m pytest $(T) -m soak --timeout=3600 </dev/null

bench: $(DONE)/project  ## the canonical measurements, with what the machine itself can do beside them
	$(PY) -m bench.run

build: $(DONE)/project  ## compile what changed

lint: $(DONE)/project  ## ruff, and the warnings of Cython (errors in every build)
	$(PY) -m ruff check .

annotate: $(DONE)/project  ## Cython's annotated HTML beside each .pyx: yellow lines in hot code are mistakes
	rm -f ledger/*.c server/*.c bench/*.c
	DAYBOOK_ANNOTATE=1 $(PY) setup.py -q build_ext --inplace --parallel 2
	@ls ledger/*.html server/*.html bench/*.html 2>/dev/null

proto: $(DONE)/packages  ## generate server/_pb again
	rm -rf server/_pb
	DAYBOOK_ONLY=none $(PY) setup.py --version

clean:  ## remove what was built (the virtual environment stays: rm -r .venv)
	rm -rf build server/_pb ledger/_limits.h ledger/_limits.pxd ledger/_status.h ledger/_status.pxd
	rm -f ledger/*.c server/*.c bench/*.c ledger/*.so server/*.so bench/*.so ledger/*.html server/*.html bench/*.html

# --- set-up, step by step; each leaves a file in $(DONE) ------------------------------------------------------------

$(DONE)/system: deploy/setup-system
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, found: $$($(or $(PYTHON),python3) --version 2>&1)" >&2; exit 1; }
	@deploy/setup-system $(PYTHON)
	@mkdir -p $(DONE) && touch $@

$(DONE)/system-test: deploy/setup-system | $(DONE)/system
	@deploy/setup-system $(PYTHON) test
	@touch $@

$(PY): | $(DONE)/system
	$(PYTHON) -m venv $(VENV)

# Build tools and dependencies first, so that the project itself builds without isolation (and without a second copy of them).
$(DONE)/packages: pyproject.toml | $(PY)
	$(PY) deploy/requirements.py build test bench > $(VENV)/requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check -r $(VENV)/requirements.txt
	@mkdir -p $(DONE) && touch $@

$(DONE)/build: $(SOURCES) $(DONE)/packages
	$(PY) setup.py -q build_ext --inplace --parallel 2
	@touch $@

$(DONE)/project: $(DONE)/build pyproject.toml
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(DONE)/demo: pyproject.toml | $(DONE)/packages
	$(PY) deploy/requirements.py demo > $(VENV)/requirements-demo.txt
	$(PY) -m pip install -q --disable-pip-version-check -r $(VENV)/requirements-demo.txt
	@touch $@
