# Every target works in .venv, which is made on first use; qrt is installed there again only when its sources have changed.
PYTHON ?= python3
# What `make test` installs. With cuda-test, device kernels are compiled as well; that needs no GPU.
TEST_EXTRAS ?= test
# A process a core, and files whole: tests of one file share the kernels that they compile.
TEST_WORKERS ?= --numprocesses auto --maxprocesses 8 --dist loadfile

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --no-input install --quiet
# Directories count too: their time changes when a file is removed.
SOURCES := pyproject.toml README.md LICENSE $(shell find qrt ops loaders -name __pycache__ -prune -o \( -type d -o -name '*.py' -o -path 'qrt/assets/*' \) -print)

.NOTPARALLEL: # two installs at once would meet in .venv
.PHONY: help demo test lint bench clean

help:
	@echo "make demo    quantize a small network and run it in int8"
	@echo "make test    run the test suite (TEST_EXTRAS=test,cuda-test compiles the kernels for GPUs too)"
	@echo "make lint    check style (ruff) and types (mypy, strict)"
	@echo "make bench   time qrt beside ONNX Runtime and OpenVINO"
	@echo "make clean   remove .venv and what builds left behind"

demo: $(VENV)/installed
	@$(BIN)/qrt demo

test: $(VENV)/installed-$(TEST_EXTRAS)
	@$(BIN)/pytest $(TEST_WORKERS) $(PYTEST_ARGS)

# mypy checks the installed copy, from beside it: in the repository's root it would find ./qrt, without qrt.ops and qrt.loaders.
lint: $(VENV)/installed-dev
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check
	@cd $(VENV) && bin/mypy --config-file ../pyproject.toml --package qrt

bench: $(VENV)/installed-bench
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	@rm -rf $(VENV) build *.egg-info

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "qrt needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is not one of them: name one, as in 'make demo PYTHON=python3.12'" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }

# A left-over build/ would put removed files back into the wheel.
$(VENV)/installed: $(SOURCES) | $(BIN)/pip
	@echo "Installing qrt into $(VENV) ..."
	@rm -rf build && $(PIP) . && rm -rf build && touch $@

$(VENV)/installed-%: $(SOURCES) | $(BIN)/pip
	@echo "Installing qrt[$*] into $(VENV) ..."
	@rm -rf build && $(PIP) '.[$*]' && rm -rf build && touch $(VENV)/installed $@
