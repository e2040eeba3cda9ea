# Everything runs in the environment .venv, made on first use with plain pip.
#   make quickstart   install, run the small benchmark, print its table and the path of its report
#   make test         install what tests need, run all but the slow ones (test-slow: these)
# PYTHON=python3.12 chooses the interpreter, VENV=path another environment.

PYTHON ?= python3
VENV ?= .venv
# Where `make types` puts the installed copy that it checks.
TYPED ?= build/typed
# Where `make docs` puts the site.
SITE ?= site
PYTEST_ARGS ?=
# Processes that tests run in; test files stay whole, and come in their folders' order: many short ones last, so that
# no process waits for another's long one. More than two want a gigabyte each.
TEST_JOBS ?= 2

BIN := $(VENV)/bin
RUN := runs/quickstart
SOURCES := repmode_cl strategies scenarios configs tests docs

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow lint typed types contracts docs report install install-test install-dev install-docs clean distclean

help:
	@sed -n 's/^#   //p' Makefile
	@echo 'make lint         check style'
	@echo 'make types        check types'
	@echo 'make contracts    check who imports whom'
	@echo 'make docs         build the documentation as a site, in site/'
	@echo 'make report       build the report of the quickstart again'
	@echo 'make clean        remove what was built and cached (distclean: .venv and runs too)'

# A stamp stands for an installed set of packages: it is redone when pyproject.toml changed since. The sources
# are installed editable, so that changing them asks for nothing.
install: $(VENV)/.installed
install-test: $(VENV)/.installed-test
install-dev: $(VENV)/.installed-dev
install-docs: $(VENV)/.installed-docs

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "repmode-cl needs Python 3.11 or newer, but '$(PYTHON)' is" \
	    "$$($(PYTHON) -V 2>/dev/null || echo not there)." >&2; \
	  echo "Install one and name it: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv "$(VENV)"
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install -e '.[docs]'
	@touch $@ $(VENV)/.installed

# A run that is there already is resumed, or shown again if it is finished.
quickstart: $(VENV)/.installed
	$(BIN)/repmode-cl bench quickstart $$(test -e $(RUN)/run.json && echo --resume)

report: $(VENV)/.installed
	$(BIN)/repmode-cl report $(RUN)

test: $(VENV)/.installed-test
	$(BIN)/pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test
	$(BIN)/pytest -m slow $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

# Type checkers and import-linter do not follow the finder of an editable install to strategies/ and scenarios/: they
# check an installed copy, without what an earlier build left behind.
typed: $(VENV)/.installed-dev
	@rm -rf build "$(TYPED)"
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target "$(TYPED)" .
	@rm -rf build/lib build/bdist.*

types: typed
	cd "$(TYPED)" && "$(abspath $(BIN))/mypy" --config-file "$(CURDIR)/pyproject.toml" \
	  --cache-dir "$(CURDIR)/.mypy_cache" -p repmode_cl

contracts: typed
	cd "$(TYPED)" && PYTHONPATH="$(abspath $(TYPED))" "$(abspath $(BIN))/lint-imports" "$(CURDIR)/pyproject.toml" --no-cache --no-logo

# A broken link or a name that is not documented fails.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean --site-dir "$(abspath $(SITE))"

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf "$(VENV)" runs
