# `make demo` and `make test` set up everything they need in .venv of this checkout.
PYTHON ?= python3
VENV ?= .venv
export VENV PYTHON
BIN := $(VENV)/bin

.PHONY: help demo demo-llm test lint types audit bench boards docs docs-site clean
help:
	@echo "make demo       install, run the built-in sweep, print the leaderboard"
	@echo "make demo-llm   the same with a real language model of 135 M parameters, on film reviews"
	@echo "make test       install, lint, check types, run the whole suite"
	@echo "make audit      ask PyPI for known vulnerabilities of the pinned packages (needs a network)"
	@echo "make bench      print the performance figures (ratios; nothing is asserted)"
	@echo "make docs       regenerate the pages made from code: methods, compat, tasks, metrics"
	@echo "make boards     draw and check the boards of the committed records into build/boards; update the copies in git"
	@echo "make docs-site  build the documentation into build/site; a broken link fails"

demo:
	@scripts/setup.sh demo
	@$(BIN)/peft-matrix run quickstart || { echo "The demo did not finish: the line above says why. Run 'make demo' again to go on where it stopped."; exit 1; }
	@$(BIN)/peft-matrix board quickstart

demo-llm:
	@scripts/setup.sh llm
	@$(BIN)/peft-matrix run demo-llm || { echo "The demo did not finish: the line above says why. Run 'make demo-llm' again to go on where it stopped."; exit 1; }
	@$(BIN)/peft-matrix board demo-llm

lint:
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . || { echo "Lint failed: '$(BIN)/ruff check --fix . && $(BIN)/ruff format .' fixes most of it."; exit 1; }

types:
	@$(BIN)/mypy || { echo "Type check failed: the lines above say where."; exit 1; }

test:
	@scripts/setup.sh test
	@echo "Lint ..." && $(MAKE) -s lint
	@echo "Types ..." && $(MAKE) -s types
	@echo "Tests ..." && HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist loadfile --durations=15 || { echo "Tests failed: the lines above say which."; exit 1; }

audit:
	@$(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet pip-audit
	@build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt || { echo "The audit is not clean: the lines above name a vulnerability, or a package that could not be looked up."; exit 1; }

bench:
	@scripts/setup.sh test
	@$(BIN)/python -m tests.benchmarks

docs:
	@$(BIN)/python -m scripts.make_docs

boards:
	@scripts/setup.sh test
	@HF_HUB_OFFLINE=1 $(BIN)/python -m scripts.boards || { echo "A check of a board failed: the lines above say which."; exit 1; }
	@echo "Open build/boards/index.html"

docs-site:
	@scripts/setup.sh docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict || { echo "The documentation has errors: the lines above say where."; exit 1; }
	@echo "Open build/site/index.html"

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
