# Every target makes its own virtual environment in .venv; only Python >= 3.10, g++ and make are needed.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INPUTS := pyproject.toml setup.py constraints.txt $(wildcard csrc/*.cpp csrc/*.h csrc/*.cu)
CXX_FILES = $(wildcard csrc/*.cpp csrc/*.h csrc/*.cu)

.PHONY: demo test check lint bench sanitize clean

demo: .venv/.demo
	$(BIN)/hetmerge demo

test: .venv/.test
	$(BIN)/pytest --benchmark-disable -n auto --dist loadfile

check: lint test

lint: .venv/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run -Werror $(CXX_FILES))

bench: .venv/.test
	$(BIN)/hetmerge bench --rows benchmarks/results

sanitize: .venv/.check
	tests/sanitize.sh

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f hetmerge/*.so

# A richer set of extras contains the smaller ones, so its stamp also stands for theirs.
.venv/.demo: $(INPUTS) | $(BIN)/python
	$(PIP_INSTALL) -e .
	touch $@

.venv/.test: $(INPUTS) | $(BIN)/python
	$(PIP_INSTALL) -e '.[hf,test]'
	touch .venv/.demo $@

.venv/.check: $(INPUTS) | $(BIN)/python
	$(PIP_INSTALL) -e '.[hf,test,dev]'
	touch .venv/.demo .venv/.test $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
