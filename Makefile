# One command each: `make demo`, `make test`. Nothing to set up by hand but Python 3.11+ with venv, make and git.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ENGINES := .venv-engines
ONCE   ?=

.PHONY: demo test test-newest test-engines lint types contracts check soak mutants bench lock venv clean

venv: $(STAMP)

$(STAMP): pyproject.toml requirements/all.txt scripts/make-venv
	@scripts/make-venv $(PYTHON) $(VENV)
	@touch $@

demo: $(STAMP)
	@$(BIN)/mainspring demo $(if $(ONCE),--once,)

lint: $(STAMP)
	@$(BIN)/ruff check src tests scripts bench
	@$(BIN)/ruff format --check -q src tests scripts bench

types: $(STAMP)
	@$(BIN)/mypy

contracts: $(STAMP)
	@$(BIN)/lint-imports --no-cache

check: lint types contracts

test: check
	@scripts/run-tests $(BIN)

soak: $(STAMP)
	@$(BIN)/python -m pytest -m soak --timeout=3600 tests

mutants: $(STAMP)
	@$(BIN)/python scripts/mutants

bench: $(STAMP)
	@$(BIN)/python -m bench

test-newest:
	@scripts/make-venv --newest $(PYTHON) .venv-newest
	@MAINSPRING_NEWEST=1 scripts/run-tests .venv-newest/bin

# Other libraries whose models are saved here, in an environment of their own: 400 MB that nobody else needs.
test-engines: $(ENGINES)/.installed
	@scripts/run-engines $(ENGINES)/bin

$(ENGINES)/.installed: pyproject.toml requirements/engines.txt scripts/make-venv
	@scripts/make-venv --lock requirements/engines.txt $(PYTHON) $(ENGINES)
	@touch $@

COMPILE = $(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-emit-package mainspring --python-version 3.11
EXTRAS  = $(addprefix --extra ,postgres ml onnx serve polars report demo)

lock:
	@$(COMPILE) $(EXTRAS) --group dev pyproject.toml -o requirements/all.txt
	@$(COMPILE) --extra serve --extra boosting --group engines -c requirements/all.txt pyproject.toml -o requirements/engines.txt

clean:
	@rm -rf $(VENV) .venv-newest $(ENGINES)
