.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV ?= .venv
UV_VERSION := 0.13.8
UV := .tools/bin/uv
BIN := $(VENV)/bin
# Else the first plan would wait for it.
COMPILE := $(BIN)/python -c "import coralline.staging as s; s.compile_planners()"
export VIRTUAL_ENV := $(abspath $(VENV))
export PYTHONPATH :=
export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false

ENGINE ?= docker
REGISTRY ?=
VERSION := 0.1.0

.PHONY: help demo up down test bench bench-staging bench-lab lint docs env dev images requirements clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

demo: env  ## Run the pipeline `respect` on real models and say where to look
	$(BIN)/coralline pipeline run respect

up: env  ## Start MLflow, its S3 store, a lab's service and runner here, or what is missing
	$(BIN)/coralline up

down:  ## End what `make up` started; what it kept stays
	[ ! -x $(BIN)/coralline ] || $(BIN)/coralline down

test: dev  ## Run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: env  ## Run the benchmarks; JSON and Markdown land in benchmarks/results
	$(BIN)/python -m benchmarks

bench-staging: env  ## Run the benchmark of the staging planners alone (half an hour)
	$(BIN)/python -m benchmarks --only staging

bench-lab: env  ## Run the load test of the lab's queue alone: minutes
	$(BIN)/python -m benchmarks --only lab

lint: dev  ## Style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: dev  ## Build the documentation into build/site; any warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

env: $(VENV)/.runtime  ## Make the environment for running

dev: $(VENV)/.dev  ## Make the environment for testing

images:  ## Build the container images and run each of their entry points
	@command -v $(ENGINE) >/dev/null || { echo "$(ENGINE) is missing: install Docker, or say make images ENGINE=podman"; exit 1; }
	@$(ENGINE) info >/dev/null 2>&1 || { echo "$(ENGINE) is here, but no engine answers it: start the Docker daemon"; exit 1; }
	for kind in project runner; do \
	  image=$(REGISTRY)coralline-$${kind/project/python}:$(VERSION); \
	  DOCKER_BUILDKIT=1 $(ENGINE) build --file k8s/images/Dockerfile --target $$kind --tag $$image \
	    --build-arg COMMIT="$$(git rev-parse HEAD 2>/dev/null)" .; \
	  k8s/images/smoke $(ENGINE) $$image $$kind; \
	done

requirements:  ## Pin pyproject.toml into requirements.txt and requirements-dev.txt
	$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-emit-index-url -o requirements.txt
	$(UV) pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-emit-index-url -c requirements.txt -o requirements-dev.txt
	$(UV) pip compile pyproject.toml --extra lab --extra meters --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-emit-index-url -c requirements.txt \
	  -o k8s/images/requirements-runner.txt

clean:  ## Remove the environment and everything the runs wrote
	rm -rf $(VENV) .tools build dist .coralline

# uv is installed beside the environment: it makes one without ensurepip, which
# Debian packs apart, and --target is allowed where Debian guards the system's Python.
$(UV):
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .tools uv==$(UV_VERSION)

$(VENV)/bin/python: | $(UV)
	$(UV) venv --quiet --python $(PYTHON) $(VENV)

$(VENV)/.runtime: requirements.txt pyproject.toml | $(VENV)/bin/python
	[ -e $(VENV)/.dev ] || $(UV) pip install --require-hashes --compile-bytecode -r requirements.txt
	$(UV) pip install --quiet --no-deps --editable .
	$(COMPILE)
	touch $@

$(VENV)/.dev: requirements-dev.txt pyproject.toml | $(VENV)/bin/python
	$(UV) pip install --require-hashes --compile-bytecode -r requirements-dev.txt
	$(UV) pip install --quiet --no-deps --editable .
	$(COMPILE)
	touch $@ $(VENV)/.runtime
