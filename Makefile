# On a fresh machine with Python >= 3.11 and make, `make demo` and `make test` are each the only command needed.

BIN := .venv/bin
# What to try, in this order; `make PYTHON=/path/to/python` puts another one first.
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11 python

.PHONY: help install demo test test-gpu lint clean

help:
	@echo "make demo     install, then run the main job on the embedded data into runs/demo"
	@echo "make test     install, then run the tests on two cores"
	@echo "make test-gpu install, then run the tests that need a GPU"
	@echo "make install  only create .venv with everything in it"
	@echo "make lint     ruff and the import layers"
	@echo "make clean    remove .venv and caches; runs/ stays"

install: .venv/.installed

# The stamp is newer than pyproject.toml once an installation has ended well: then there is nothing to do.
.venv/.installed: pyproject.toml
	@for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "installing into .venv with $$("$$python" --version); a few minutes" >&2; \
	    exec "$$python" -m venv .venv; \
	  fi; \
	done; \
	echo "leandetr needs Python 3.11 or newer with its venv module: install it, or name it with make PYTHON=/path/to/python" >&2; \
	exit 2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# A model this small runs as fast on one thread as on two; the other core reads the images.
demo: install
	OMP_NUM_THREADS=1 $(BIN)/leandetr compress recipes/demo.yaml --out runs/demo

# One thread a process: two processes with a thread pool each would fight over two cores.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

test-gpu: install
	$(BIN)/python -m pytest -m gpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -exec rm -rf {} +
