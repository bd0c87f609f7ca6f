# On a fresh machine with Python >= 3.11 and make, `make demo` and `make test` are each the only command needed.

BIN := .venv/bin
# What to try, in this order; `make PYTHON=/path/to/python` puts another one first.
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11 python
# One thread a process: two processes with a thread pool each would fight over two cores.
PYTEST := python -m pytest -n 2 --dist loadfile --max-worker-restart 0

.PHONY: help install demo test test-oldest test-newest test-gpu torture lock lint docs clean

help:
	@echo "make demo         install, then run the main job on the embedded data into runs/demo"
	@echo "make test         install, then run the tests on two cores"
	@echo "make test-oldest  the same tests with the lowest versions that pyproject.toml allows, in .venv-oldest"
	@echo "make test-newest  the same tests with today's newest versions, in .venv-newest"
	@echo "make test-gpu     install, then run the tests that need a GPU"
	@echo "make torture      install, then mutated files, kills, full disks and lost folders, each row by one of two processes"
	@echo "make install      only create .venv with everything in it, at the versions of constraints.txt"
	@echo "make lock         test-newest, then write its versions to constraints.txt"
	@echo "make lint         ruff, the import layers and mypy"
	@echo "make docs         build the site of docs/ into site/"
	@echo "make clean        remove the environments and caches; runs/ stays"

# $(call environment,locked .venv): see tools/environment.py
define environment
	@for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    exec "$$python" tools/environment.py $(1); \
	  fi; \
	done; \
	echo "leandetr needs Python 3.11 or newer with its venv module: install it, or name it with make PYTHON=/path/to/python" >&2; \
	exit 2
endef

install: .venv/.installed

# The stamp is newer than what it was made from once an installation has ended well: then there is nothing to do.
.venv/.installed: pyproject.toml constraints.txt
	$(call environment,locked .venv)
	@touch $@

.venv-oldest/.installed: pyproject.toml
	$(call environment,oldest .venv-oldest)
	@touch $@

# A model this small runs as fast on one thread as on two: the student learns alone on one core, from its teacher on the other.
demo: install
	OMP_NUM_THREADS=1 $(BIN)/leandetr compress recipes/demo.yaml --out runs/demo --jobs 2

test: install
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST)

test-oldest: .venv-oldest/.installed
	OMP_NUM_THREADS=1 .venv-oldest/bin/$(PYTEST)

# Made anew every time: what is newest changes without a change here.
test-newest:
	$(call environment,newest .venv-newest)
	OMP_NUM_THREADS=1 .venv-newest/bin/$(PYTEST)

lock: test-newest
	$(call environment,lock .venv-newest)

test-gpu: install
	$(BIN)/python -m pytest -m gpu

torture: install
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks $(BIN)/python -m torture --jobs 2 $(TORTURE)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

docs: install
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv .venv-oldest .venv-newest build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find src tests tools benchmarks -name __pycache__ -type d -exec rm -rf {} +
