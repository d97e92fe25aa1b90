# `make help` lists the targets. Everything runs in .venv, made once from requirements.lock.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all e2e cluster-test lint format lock audit image docker-test dvc docs bench clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(READY)  ## make .venv from requirements.lock (the other targets do it by themselves)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gkd needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 …")'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements.lock into $(VENV) (some minutes, several GB)"
	@$(VENV)/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## run the whole pipeline on params.yaml (default data: handwritten digits) and show the outcome
	@dvc repro
	@gkd summary

PYTEST := OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile

test: $(READY)  ## the tests to run before a commit: all that are not slow
	@$(PYTEST) -m "not slow and not e2e and not docker and not gpu"

test-all: $(READY)  ## the full test suite, with the slow ones
	@$(PYTEST) -m "not e2e and not docker and not gpu"

e2e: $(READY)  ## check what `make demo` left
	@pytest tests/e2e -m e2e

cluster-test: $(READY)  ## check a Kubernetes cluster, named by KUBECONFIG and KF_PIPELINES_ENDPOINT (CHECKS="volume submit"; docs/kubernetes.md)
	@python -m tests.cluster $(CHECKS)

lint: $(READY)  ## ruff and mypy
	@ruff check . && ruff format --check . && mypy

format: $(READY)  ## let ruff fix what it can
	@ruff check --fix . && ruff format .

lock: $(READY)  ## make the requirements*.lock files anew from pyproject.toml
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--extra all --extra dev --extra bench --extra docs pyproject.toml --output-file requirements.lock $(LOCK)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--extra serve pyproject.toml --output-file requirements-serve.lock $(LOCK)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--constraint requirements.lock --extra all pyproject.toml --output-file requirements-train.lock $(LOCK)
	@printf 'cyclonedx-bom\nhatchling\npip\n' | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --constraint requirements.lock - --output-file requirements-build.lock $(LOCK)

image:  ## build the container images gkd:VERSION and gkd-serve:VERSION (BASE_IMAGE=…, IMAGE=…; see .ci/image)
	@BASE_IMAGE='$(BASE_IMAGE)' IMAGE='$(IMAGE)' .ci/image

docker-test: $(READY)  ## build the images and run the pipeline and the server in containers (an engine: see .ci/engine)
	@pytest tests/docker -m docker

dvc: $(READY)  ## make dvc.yaml from the table of steps (components/graph.py)
	@python -m pipelines.dvc

docs: $(READY)  ## make the pages that come from code and raw tables (parameters, methods, commands, results), then the site, in site/
	@gkd params --markdown > docs/parameters.md
	@gkd methods --markdown > docs/methods.md
	@python -m pipelines.command_reference > docs/commands.md
	@python -m benchmarks.results
	@python -m benchmarks.pictures
	@mkdocs build --strict --quiet

audit: $(READY)  ## known vulnerabilities in the locked dependencies; says so where nobody can be asked
	@python .ci/audit

bench: $(READY)  ## measure speed as ratios, side by side, and write them into docs/performance.md (under 20 minutes)
	@python -m benchmarks --write

clean:  ## remove what a run leaves (not .venv, not the tracking store)
	@rm -rf sources data teacher baseline kd student deploy report registration dvclive work
