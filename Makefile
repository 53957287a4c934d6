# make install   the set-up alone: .venv, pinned packages, s2vfast itself (editable) with its compiled extension
# make demo      set-up, then the whole way on synthetic data: pretrain, evaluate, a report
# make test      set-up, then everything that CI runs
# make lint      set-up, then the checks of style and types alone
# make docs      set-up, then the documentation as a site: build/docs/index.html (Python 3.11 or newer)
# make bench     set-up, then all measurements on this machine, with docs/performance.md (10 minutes)
# make fuzz      set-up, then every reader against many mutated files (FUZZ=20000 of each), and against those that a
#                fuzzer guided by coverage makes (GUIDED=20000 of each; Linux)
# make gpu       all that needs a GPU: tests, measurements, compute-sanitizer; results go to $(OUT)
# make clean     removes what was built; .venv stays (make clean-all removes it too)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The interpreter of `make gpu`: give PY=python3 on a machine whose own packages are to be used.
PY ?= $(BIN)/python
OUT ?= benchmarks/results/local
# More words for pip, for instance --find-links FOLDER.
PIP_ARGS ?=
OLDER_TRITON := triton-3.6.0
# A worker a core, four at most; a file's tests stay together, as they share what they set up. -n 0: all in one process.
# A test that waits for something that never comes fails after so many seconds; all others are run.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile --timeout 1200

.DEFAULT_GOAL := install
.PHONY: install demo test lint docs bench fuzz gpu clean clean-all
.DELETE_ON_ERROR:

install: $(VENV)/.installed

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; s2vfast needs Python 3.10 or newer (PYTHON=... names another)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1); s2vfast needs Python 3.10 or newer (PYTHON=... names another)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The pin torch==2.13.0 is right with and without a GPU: on x86-64 Linux the registry's own wheel is the CUDA build, and a
# CPU build that pip is shown (its version 2.13.0+cpu sorts higher) is preferred to it. With an NVIDIA GPU, or where no
# CPU build is offered, pip takes the CUDA build.
$(VENV)/.pins: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.txt
	@touch $@

# --no-deps: what is needed is pinned above, so pip never goes looking for another torch.
$(VENV)/.installed: $(VENV)/.pins pyproject.toml setup.py s2vfast/__init__.py $(wildcard csrc/*)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'from s2vfast import _extension; why = _extension.why_not(); print("warning: " + why if why else "s2vfast is installed with its compiled extension: .venv/bin/s2vfast --help")'
	@touch $@

demo: install
	$(BIN)/s2vfast demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# S2VFAST_DATA, a folder that holds nw_ucla/, turns on the tests on real recordings.
test: lint $(VENV)/$(OLDER_TRITON)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The oldest Triton that is supported, which the kernels are compiled with as well; nothing else runs on it.
$(VENV)/$(OLDER_TRITON): | $(VENV)/.pins
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PIP_ARGS) --target $@ 'triton==$(OLDER_TRITON:triton-%=%); sys_platform == "linux"'

# -W: a link that leads nowhere, or a name that is not there, is an error.
docs: install $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -b html . build/docs
	@echo "open build/docs/index.html"

$(VENV)/.docs: docs/requirements.txt $(VENV)/.pins
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r docs/requirements.txt
	@touch $@

# Every operation, whole steps, data, cold start, and what the kernels compile to; BENCH_ARGS as of benchmarks.run.
bench: install
	$(BIN)/python -m benchmarks.run --device cpu --out benchmarks/results --report $(BENCH_ARGS)

FUZZ ?= 20000
GUIDED ?= 20000
fuzz: install
	S2VFAST_FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/data/test_fuzz.py tests/data/test_formats_text.py $(PYTEST_ARGS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PIP_ARGS) atheris==3.0.0
	$(BIN)/python -m tests.data.fuzz_guided --runs $(GUIDED)

# Nothing is installed into .venv where PY names another interpreter than the one of .venv.
gpu: $(if $(filter $(BIN)/python,$(PY)),install)
	OUT="$(OUT)" $(PY) -m benchmarks.gpu

clean:
	rm -rf build dist *.egg-info s2vfast/_native*.so s2vfast/_native_*.txt .pytest_cache .ruff_cache .mypy_cache .hypothesis $(VENV)/.installed

clean-all: clean
	rm -rf $(VENV)
