# `make run` and `make test` are all that a fresh clone needs: both create .venv from the lock first.
PYTHON ?= python3
BIN := .venv/bin
PYTEST_OPTIONS ?=

.PHONY: run test test-long lint lock clean

run: .venv/installed
	$(BIN)/fraud-ray run -c configs/local.yaml

test: .venv/installed
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

# Stores, nodes and recoveries, each with servers or clusters of its own to start.
test-long: .venv/installed
	$(BIN)/python -m pytest -m long $(PYTEST_OPTIONS)

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The lock constrains every package, whatever extras are installed.
.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[test]'
	touch $@

# Writes the lock anew from the ranges in pyproject.toml. A local version such as 2.13.0+cpu says where a wheel came
# from, not what it is, so it is cut off.
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0 -e '.[test,compare]'
	.venv-lock/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-lock .fraud_ray data build *.egg-info
