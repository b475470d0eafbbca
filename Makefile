# `make demo` and `make test` do all their own set-up on a fresh Debian machine with Python 3.11.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow test-metaworld faults docs tutorials lint bench clean

help:  ## show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

venv: .venv/.ready  ## make .venv with PyTorch, this package and all that its tests need

# pip compiles modules one by one, and these are thousands: all cores do so faster. A few templates among them are no Python.
COMPILE = $(BIN)/python -m compileall -q -j 0 .venv/lib src > /dev/null || true

.venv/.core: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile "torch==2.13.0"
	$(BIN)/pip install --quiet --no-compile -e .
	$(COMPILE)
	touch $@

# Order-only: what .core has done is kept, and a newer .core alone is no reason to install again.
.venv/.ready: pyproject.toml | .venv/.core
	$(BIN)/pip install --quiet --no-compile -e ".[dev]"
	$(COMPILE)
	touch $@

demo: .venv/.core  ## train ALGD under a cost budget in ten minutes and leave curves, a video, a policy
	$(BIN)/python examples/demo.py

# Where the processor has native operations, a broken build of them fails. The tests of a file stay in one process,
# which makes its fixtures once. Files start in the order of their names: xdist would start those with the fewest tests
# last, and some of these are long.
test: venv lint  ## lint, types, import arrows and the fast tests (what CI runs)
	SADDLEPOINT_REQUIRE_NATIVE=$$($(BIN)/python -c "from saddlepoint.nn import ops; print(int(ops.native_supported()))") \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: venv  ## the long learning tests
	$(BIN)/python -m pytest -m slow --timeout 3600

# Meta-World pins a MuJoCo that dm_control does not run with, so it cannot be in .venv.
.venv-metaworld/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-metaworld
	.venv-metaworld/bin/pip install --quiet "torch==2.13.0"
	.venv-metaworld/bin/pip install --quiet -e ".[metaworld]" "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100"
	touch $@

test-metaworld: .venv-metaworld/.ready  ## Meta-World's tasks and the simple ones, in an environment of their own
	.venv-metaworld/bin/python -m pytest tests/test_metaworld.py tests/test_envs_toy.py tests/test_envs_velocity.py tests/test_envs_snapshot.py

docs: venv  ## the documentation site in site/, built strictly; open site/index.html
	$(BIN)/pip install --quiet -e ".[docs]"
	$(BIN)/mkdocs build --strict

tutorials: venv  ## run the tutorials of examples/ and write their pages into docs/ (about half an hour)
	$(BIN)/python docs/assets/tutorials.py

faults: venv  ## inject every fault in numbers and write the table of docs/reliability.md
	$(BIN)/python -m tests.faults

lint: venv  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv  ## time the update and acting (see the script for --official and --scaling)
	$(BIN)/python benchmarks/algd_update.py

clean:  ## remove the environment and caches
	rm -rf .venv .venv-metaworld .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site
