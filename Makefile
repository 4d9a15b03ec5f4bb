# `make run` and `make test` are all that a fresh clone needs: both create .venv from the lock first.
PYTHON ?= python3
BIN := .venv/bin
PYTEST_OPTIONS ?=
# Two files at a time: tests wait for servers and for Ray more than they compute, and each side shares one Ray.
PYTEST := python -m pytest -n 2 --dist loadfile

.PHONY: run test test-long test-faults test-oldest lint lock audit sbom clean

run: .venv/installed
	$(BIN)/fraud-ray run -c configs/local.yaml

test: .venv/installed
	$(BIN)/$(PYTEST) $(PYTEST_OPTIONS)

# Stores, nodes and recoveries, each with servers or clusters of its own to start.
test-long: .venv/installed
	$(BIN)/$(PYTEST) -m long $(PYTEST_OPTIONS)

# Faults caused for real; writes the table of what held.
test-faults: .venv/installed
	$(BIN)/$(PYTEST) -p tests.faults.table -m faults $(PYTEST_OPTIONS)

# The same tests on the oldest Ray and MLflow that pyproject.toml allows.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/$(PYTEST) $(PYTEST_OPTIONS)

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A lock constrains every package, whatever extras are installed.
.venv/installed: requirements.lock
.venv-oldest/installed: requirements-oldest.lock
%/installed: pyproject.toml
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --disable-pip-version-check -c $(filter %.lock,$^) -e '.[test]'
	touch $@

# Writes both locks anew from the ranges in pyproject.toml: the newest that install together, and the floors of Ray and
# MLflow with the newest of the rest. A local version such as 2.13.0+cpu says where a wheel came from, not what it is,
# so it is cut off.
FREEZE = .venv-lock/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//'
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0 -e '.[test,compare]'
	$(FREEZE) > requirements.lock
	.venv-lock/bin/python -m pip install --quiet ray==2.59.0 mlflow==3.16.0 torch==2.13.0 -e '.[test,compare]'
	$(FREEZE) > requirements-oldest.lock
	rm -rf .venv-lock
	$(MAKE) requirements-runtime.lock

# What the image runs on, each wheel by its hash: the lock without the tools of tests, and without torch, whose build is
# the image's to choose (networkx is what torch alone needs).
requirements-runtime.lock: pyproject.toml requirements.lock .venv-audit/installed
	printf 'torch ; python_version < "3"\n' > .venv-audit/without-torch
	echo networkx | .venv-audit/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --override .venv-audit/without-torch -c requirements.lock -o $@ pyproject.toml -

# Known vulnerabilities of what the image runs on, and the list of it as CycloneDX has it (sbom.json).
audit: .venv-audit/whole
	.venv-audit/bin/pip-audit --disable-pip --no-deps -r $<

sbom: .venv-audit/whole
	.venv-audit/bin/cyclonedx-py requirements $< --pyproject pyproject.toml -o sbom.json

.venv-audit/whole: requirements.lock requirements-runtime.lock .venv-audit/installed
	grep '^torch==' requirements.lock | cat requirements-runtime.lock - > $@

.venv-audit/installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check uv pip-audit cyclonedx-bom
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-lock .venv-audit sbom.json .fraud_ray data build *.egg-info
