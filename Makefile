# The developers' manual: `make help` prints it. Everything is set up in .venv, without root.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The newest interpreter that runs, is 3.11 or later and can make a virtual environment. Another one: PYTHON=...
PYTHON ?=
# More arguments for pytest: make test ARGS="-k matcher --slow"
ARGS   ?=
# Test processes. Two suit a small machine: tinygrad's kernels use every core already.
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help install run test lint format types layers lock docs wheel bench clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Set up .venv from the locks

$(STAMP): requirements/dev.txt pyproject.toml
	@python=; found=; \
	for candidate in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
		"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
		found="$$candidate"; \
		"$$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1 && python="$$candidate" && break; \
	done; \
	if [ -z "$$found" ]; then \
		echo "make: Python 3.11 or later is needed; none of $(or $(PYTHON),python3.13 python3.12 python3.11 python3) is: install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	elif [ -z "$$python" ]; then \
		echo "make: $$found cannot make virtual environments, its venv module is not installed: on Debian and Ubuntu, apt-get install $$($$found -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 1; \
	fi; \
	echo "setting up $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: $(STAMP) ## Tune ResNet-18's convolutions, print the winners, leave the dashboard up; ARGS="--port 8001 --budget 10"
	@$(BIN)/python -m api.demo $(ARGS)

test: $(STAMP) ## Run the tests; what was skipped, and why, is printed last
	@$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: $(STAMP) ## Check style and formatting (ruff)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP) ## Format, and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(STAMP) ## Check types (mypy --strict)
	@$(BIN)/mypy

layers: $(STAMP) ## Check who imports whom (import-linter)
	@$(BIN)/lint-imports

# Versions and hashes for every supported Python, Linux and macOS. What is locked stays locked: make lock UPGRADE=--upgrade
lock: $(STAMP) ## Write requirements/*.txt anew from pyproject.toml
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml $(LOCK) -o requirements/run.txt
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml $(LOCK) --extra dev -c requirements/run.txt -o requirements/dev.txt
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml $(LOCK) --extra image -c requirements/dev.txt -o requirements/image.txt
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --group cuda $(LOCK) -o requirements/cuda.txt

LOCK = --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url --no-emit-find-links $(UPGRADE)

docs: $(STAMP) ## Write docs/cli.md and docs/http.md anew from the code
	@$(BIN)/python -m api.reference docs

wheel: $(STAMP) ## Build dist/*.whl
	@$(BIN)/python -m build --wheel --no-isolation

bench: $(STAMP) ## Time direct, WINO=1 and the tuned winner against each other
	@$(BIN)/python bench/convs.py

clean: ## Remove .venv and every cache and build output
	@rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
