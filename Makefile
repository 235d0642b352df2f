# make demo, make test: need Python 3.11 or newer and make, nothing else
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check claims claim-words docs bench clean

$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/weathered demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

claims: $(VENV)/.dev
	$(BIN)/weathered verify

# the words of claims into their ledger files, whose figures stay; refused where more than words changed
claim-words: $(VENV)/.dev
	$(BIN)/python -c 'from weathered.verification import reword_ledger; print(*reword_ledger())'

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

bench:
	$(MAKE) -C benchmarks

clean:
	rm -rf $(VENV) site runs
