# make demo    edit an example image with the shipped model; needs only Python 3.11 or newer
# make test    the whole suite
# make check   lint, types, layers and the whole suite: what CI runs
# make gpu-test   on a machine with an NVIDIA GPU: its tests, and every figure claimed of one; see docs/gpu.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# a worker for each core, four at most: each loads PyTorch; what is left of a worker's tests goes to whoever is idle
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test check gpu-test format clean

demo: $(VENV)/.installed
	$(BIN)/python bundles/demo.py

test: $(VENV)/.installed-dev
	$(PYTEST)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(PYTEST)

# with PYTHON's own packages, which are the machine's; OPTIONS="--only kernels" and so on
gpu-test:
	PYTHONPATH=$(CURDIR)/runtime:$(CURDIR)/kernels:$(CURDIR)/export:$$PYTHONPATH $(PYTHON) benchmarks/gpu.py $(OPTIONS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist out

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "hspace needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml CMakeLists.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

# constraints.txt pins what CI uses; torch==2.13.0 among it
$(VENV)/.installed-dev: pyproject.toml CMakeLists.txt constraints.txt | $(BIN)/python
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed
