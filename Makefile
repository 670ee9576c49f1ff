.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: help setup sweep test test-all test-fast coverage lint type bench experiments ui report lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## create .venv and install, unless it is up to date

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

sweep: $(STAMP) ## train and evaluate with 2, 10 and 20 latent dimensions (about two minutes)
	$(BIN)/python run.py latent_dim=2,10,20 -m

# A process of tests per core, each with one thread: most tests wait for processes of one thread.
test: lint type ## lint, types and the tests without the mark long (about an hour on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup -m 'not long'

test-all: lint type ## lint, types and all tests (half an hour more)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup

test-fast: $(STAMP) ## the tests without the mark slow (under 3 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup -m 'not slow'

coverage: $(STAMP) ## all tests, and the lines that they do not run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup --cov --cov-report=term-missing

lint: $(STAMP) ## ruff: style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP) ## mypy: strict, less so on tests/ and benchmarks/
	$(BIN)/mypy

bench: $(STAMP) ## compare the speed with other libraries, and rewrite docs/performance.md (about 20 minutes; MNIST)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python -m benchmarks

experiments: $(STAMP) ## run all experiments again, and rebuild their table (about an hour and a half)
	$(BIN)/python -m experiments

ui: $(STAMP) ## browse the recorded runs in MLflow; Ctrl-C ends it
	$(BIN)/python run.py ui --port $(PORT)

PORT ?= 5000

report: $(STAMP) ## write report.html: the last sweep or job, or RUN=its folder
	$(BIN)/python run.py report $(RUN)

lock: ## remake requirements.lock from pyproject.toml and constraints.txt (about 5 minutes; Linux, Python 3.11)
	$(PYTHON) -m venv --clear $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet --disable-pip-version-check pip-tools==7.6.2
	$(VENV)/lock/bin/pip-compile --quiet --generate-hashes --all-extras --all-build-deps --allow-unsafe --strip-extras \
		--no-header --no-annotate --no-emit-options --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
		-c constraints.txt -o $(VENV)/lock/requirements pyproject.toml
	{ echo '# The packages of constraints.txt with the SHA-256 of their files, for Python 3.11 on Linux (x86-64).'; \
		echo '# Made by: make lock'; grep -v '^#' $(VENV)/lock/requirements | grep .; } > requirements.lock

clean: ## remove .venv and caches; results stay
	rm -rf $(VENV) *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
