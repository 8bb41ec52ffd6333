# Everything here needs Python 3.11+ and make, and sets up .venv by itself.

PYTHON ?= python3
BIN := .venv/bin
WANTED := import sys; sys.exit(0 if sys.version_info >= (3, 11) else "outlive needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 $(MAKECMDGOALS)")

.PHONY: help demo test test-lowest test-python reliability soak tools page-tools page-lint lint types bench performance lock picture screenshots live-cost clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the service, its partner and traffic, live in this terminal"
	@echo "make test    the whole suite"
	@echo "make test-lowest, make test-python PYTHON=python3.13    the unit tests elsewhere"
	@echo "make reliability    overload, storms, faults and abuse in full size, and docs/reliability.md"
	@echo "make soak    mixed traffic and faults for SECONDS (20 minutes), and what must not grow"
	@echo "make tools   the programs that the tests of the stack run (needs Go)"
	@echo "make page-tools    what checks the live page (needs npm)"
	@echo "make lint    ruff; make page-lint: types, format and tests of the live page's modules"
	@echo "make types   mypy, strict"
	@echo "make bench   Outlive beside its peers and the floor (ARGS=--smoke for a minute's look)"
	@echo "make performance    docs/performance.md from what make bench has measured"
	@echo "make lock    renew requirements/ from pyproject.toml"

.venv/pyvenv.cfg:
	@$(PYTHON) -c '$(WANTED)'
	$(PYTHON) -m venv .venv

.venv/.service: .venv/pyvenv.cfg requirements/build.txt requirements/service.txt pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.txt -r requirements/service.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.service requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

demo: .venv/.service
	$(BIN)/outlive demo $(ARGS)

test: .venv/.dev
	$(BIN)/pytest -n auto --dist loadgroup $(ARGS)

# The unit tests on the oldest dependencies that pyproject.toml allows the library.
test-lowest: .venv/.dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --extra telemetry --no-emit-index-url pyproject.toml -o .venv-lowest/requirements.txt >/dev/null
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python -r .venv-lowest/requirements.txt -r requirements/build.txt pytest pytest-xdist hypothesis httpx2 mypy uvloop opentelemetry-instrumentation-fastapi
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --no-deps --no-build-isolation -e .
	.venv-lowest/bin/python -m pytest -n auto tests/unit

# The unit tests on another Python: make test-python PYTHON=python3.13
test-python: .venv/.dev
	$(BIN)/uv venv --quiet --clear --no-python-downloads --python $(PYTHON) .venv-python
	$(BIN)/uv pip install --quiet --python .venv-python/bin/python --require-hashes -r requirements/build.txt -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python .venv-python/bin/python --no-deps --no-build-isolation -e .
	.venv-python/bin/python -m pytest -n auto tests/unit

# One after the other, since they would only measure each other.
reliability: .venv/.dev
	$(BIN)/pytest tests/reliability --report docs/reliability.md $(ARGS)

# Its result is a part of docs/reliability.md from the next `make reliability` on.
SECONDS ?= 1200
soak: .venv/.service
	$(BIN)/python -m outlive_service.soak --seconds $(SECONDS) --out docs/soak.json $(ARGS)

# The real Collector, Jaeger, Prometheus and linters for the tests of the stack; needs Go, and minutes the first time.
tools:
	tools/install

# TypeScript's checker, Prettier and axe-core for the tests of the live page; needs npm.
page-tools: tests/browser/node_modules/.package-lock.json
tests/browser/node_modules/.package-lock.json: tests/browser/package.json
	npm install --prefix tests/browser --no-package-lock --no-audit --no-fund --silent
	@touch $@

page-lint: .venv/.dev page-tools
	OUTLIVE_REQUIRE_TOOLS=1 $(BIN)/pytest tests/browser/test_modules.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

# An environment of their own: the peers' requirements must not hold back the service's.
.venv-bench/.ready: .venv/.dev requirements/bench.txt pyproject.toml
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-bench
	$(BIN)/uv pip install --quiet --python .venv-bench/bin/python --require-hashes -r requirements/bench.txt
	$(BIN)/uv pip install --quiet --python .venv-bench/bin/python --no-deps --no-build-isolation -e .
	@touch $@

# Ten minutes on a quiet machine; a minute with ARGS=--smoke. The page is made of what it has measured.
bench: .venv-bench/.ready
	.venv-bench/bin/python -m benchmarks $(ARGS)

performance: .venv/.dev
	$(BIN)/python -m benchmarks.page

# Locked for every platform and Python 3.11+, with no index address in the files.
COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --custom-compile-command "make lock" $(LOCK_ARGS)
lock: .venv/.dev
	$(COMPILE) pyproject.toml --extra service -o requirements/service.txt
	$(COMPILE) --group build -o requirements/build.txt
	$(COMPILE) pyproject.toml --extra service --group build --group bench -c requirements/build.txt -o requirements/bench.txt
	$(COMPILE) pyproject.toml --extra service --extra dashboards --extra conformance --group dev -c requirements/service.txt -c requirements/build.txt -o requirements/dev.txt

# The pictures of the live page, and what it costs; see tools/.
screenshots: .venv/.dev
	$(BIN)/python tools/screenshots.py $(ARGS)

live-cost: .venv/.dev
	$(BIN)/python tools/live_cost.py $(ARGS)

picture: .venv/.service
	$(BIN)/outlive demo --seconds 12 --seed 7 --picture docs/demo.svg

clean:
	rm -rf .venv .venv-bench .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
