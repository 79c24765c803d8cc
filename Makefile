# The everyday commands. Each makes what it needs from nothing (Python 3.11+, a C compiler, make); repeats are quick.
#
#   make demo     threads index /usr into a database while others check it; then a report
#   make test     the whole suite, compiled and interpreted
#   make lint     ruff, and mypy --strict
#   make stress   the seeded stress tests for long: EFFORT=20 times the usual, SEEDS=10 of them
#   make stress-long MINUTES=60    the rig's campaigns (docs/reliability.md) for so long in all; MODE=interpreted too
#   make sabotage    plant bugs one by one and see the tests catch each; SABOTAGE='name ...' for some of them
#   make bench    beside LMDB, three ratios
#   make bench-space, make bench-load    what is written, kept and read for each byte; a long random load.
#                 BENCH='--data lines.tsv.xz --keys 200000' gives them arguments, BENCH=--help shows which
#   make docs     the examples in the documents, run
#   make build    only install the compiled package into .venv
#   make clean
#
# TESTS='tests/unit/test_leaf.py -k empty' narrows a test run. VENV and PYTHON choose another environment:
# make test-compiled VENV=.venv-3.13 PYTHON=python3.13

PYTHON ?= python3
VENV ?= .venv
VENV_INTERPRETED ?= $(VENV)-interpreted
TESTS ?=
BENCH ?=
EFFORT ?= 20
SEEDS ?= 10
MINUTES ?= 60
SEED ?= 0
MODE ?= compiled
SABOTAGE ?=
JOBS ?= 2

SOURCES := $(shell find mmlsm \( -name '*.py' -o -name '*.pxd' -o -name py.typed -o -type d \) ! -name __pycache__)
PACKAGING := pyproject.toml setup.py MANIFEST.in $(wildcard README.md)

# `import mmlsm` must find what was installed and not the checkout, in subprocesses of the tests too.
export PYTHONSAFEPATH = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
unexport PYTHONPATH

# What benchmarks share stands beside them.
BENCHMARK = PYTHONPATH=benchmarks $(VENV)/bin/python

.PHONY: demo test test-compiled test-interpreted lint stress stress-long sabotage bench bench-space bench-load docs build build-interpreted clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(VENV)/bin/mmlsm demo

test: test-compiled test-interpreted

test-compiled: $(VENV)/installed
	MMLSM_EXPECT_MODE=compiled $(VENV)/bin/python -m pytest $(TESTS)

# What proves the tests' own machinery runs once, compiled.
test-interpreted: $(VENV_INTERPRETED)/installed
	MMLSM_EXPECT_MODE=interpreted $(VENV_INTERPRETED)/bin/python -m pytest $(or $(TESTS),-m 'not rig')

# The compiled suite, but for the rig and its campaigns, on another Python: make on-3.13
on-%:
	$(MAKE) test-compiled VENV=.venv-$* PYTHON=$(or $(PYTHON_$*),python$*) \
	    TESTS="$(or $(TESTS_$*),$(TESTS),-m 'not campaign and not rig')"

lint: $(VENV)/tools
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

stress: $(VENV)/installed
	MMLSM_EXPECT_MODE=compiled $(VENV)/bin/python -m pytest --effort $(EFFORT) --seeds $(SEEDS) --timeout 3600 \
	    $(or $(TESTS),tests/stress)

stress-long: $(if $(filter interpreted,$(MODE)),$(VENV_INTERPRETED),$(VENV))/installed
	MMLSM_EXPECT_MODE=$(MODE) $(<D)/bin/python -m pytest -m campaign --minutes $(MINUTES) --seed $(SEED) \
	    $(or $(TESTS),tests)

sabotage: $(VENV)/installed
	PYTHONPATH=tests $(VENV)/bin/python -m sabotage --jobs $(JOBS) --write build $(SABOTAGE)

bench: $(VENV)/installed
	$(VENV)/bin/python -m pip install -q lmdb
	$(BENCHMARK) benchmarks/against_lmdb.py $(BENCH)

bench-space bench-load: bench-%: $(VENV)/installed
	$(BENCHMARK) benchmarks/$*.py $(BENCH)

docs: $(VENV)/installed
	MMLSM_EXPECT_MODE=compiled $(VENV)/bin/python -m pytest tests/unit/test_documents.py

build: $(VENV)/installed

build-interpreted: $(VENV_INTERPRETED)/installed

clean:
	rm -rf .venv* build dist *.egg-info

# An environment with what the tests and the build need, made anew when pyproject.toml asks for other things.
%/tools: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install -q $$($*/bin/python -c 'import tomllib; \
	    project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	    print(*project["dependencies"], *project["optional-dependencies"]["dev"])')
	touch $@

# Installed from a copy, so that nothing built stands in the checkout and several environments may build at once.
# The copy keeps the times, so only what changed is compiled again.
INSTALL = rm -rf $(@D)/source/mmlsm && mkdir -p $(@D)/source && \
    cp -Rp mmlsm $(PACKAGING) $(@D)/source/ && find $(@D)/source/mmlsm -name '*.so' -delete && \
    $(1) $(@D)/bin/python -m pip install -q --no-deps --no-build-isolation --force-reinstall $(@D)/source && touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES) $(PACKAGING)
	$(call INSTALL,MMLSM_INTERPRETED=0)

$(VENV_INTERPRETED)/installed: $(VENV_INTERPRETED)/tools $(SOURCES) $(PACKAGING)
	$(call INSTALL,MMLSM_INTERPRETED=1)
