# make demo: install, then run the main job. make test: install, then run every check.
# make check: the same without the slow tests.
# make docs: install, then build the documentation site into out/site.
# All are incremental: a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LINT := $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
# One thread a process, since there is a process for each core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile

.PHONY: demo check test docs clean

demo: $(VENV)/installed
	$(BIN)/lipdet demo --out out/demo

check: $(VENV)/installed-dev
	$(LINT)
	$(PYTEST) -m 'not slow'

test: $(VENV)/installed-dev
	$(LINT)
	$(PYTEST)

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict

$(BIN)/pip:
	sh scripts/make_venv.sh $(PYTHON) $(VENV)

# One pip call for everything, so that what matches one torch is found.
$(VENV)/installed: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) out
