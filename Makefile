# The five words are build, check, test, run and bench; `make` alone lists what else there is.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PYX := $(shell find engine edgenode bench tests -name '*.py[x]' -o -name '*.pxd')
BUILT := build/.built

.DEFAULT_GOAL := help
.PHONY: help build check test run bench bench-micro proof test-debug sim fuzz mutants resources clean \
	wheel binary deb again prove release

help:
	@echo 'make run    build, then a ten-second demonstration of a whole node'
	@echo 'make test   build, then the test suite'
	@echo 'make check  formatting, lint, types, stubs, tidy'
	@echo 'make proof  ten minutes of kills, power cuts and bit flips; HOURS=8 for longer'
	@echo 'make bench  the benchmarks; results into bench/results'
	@echo 'make sim, fuzz, mutants, resources: proofs that take longer (CONTRIBUTING.md)'
	@echo 'make binary the compiled node: dist/minoots.dist, and dist/minoots in one file'
	@echo 'make wheel | deb | prove | again | release KEY=FILE: see packaging/'
	@echo 'make build  virtual environment and compiled extensions'
	@echo 'make clean  remove everything that was built'

$(STAMP): pyproject.toml requirements.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(BUILT): $(STAMP) $(PYX) setup.py
	@mkdir -p build
	$(BIN)/python setup.py --quiet build_ext --inplace > build/build.log 2>&1 || (cat build/build.log; exit 1)
	@! grep -n 'performance hint' build/build.log
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . 
	@touch $@

build: $(BUILT)

run: build
	$(BIN)/minoots demo

test: build
	$(BIN)/python -m pytest

check: build
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=packaging $(BIN)/mypy packaging/*.py
	$(BIN)/python -m mypy.stubtest --concise $(shell $(PYTHON) packaging/stubs.py)
	$(BIN)/python -m pytest tests/test_tidy.py

test-debug: build
	MINOOTS_DEBUG=1 $(BIN)/python setup.py --quiet build --build-base build/debug --build-lib build/debug/lib > build/debug.log 2>&1 || (cat build/debug.log; exit 1)
	cp -r docs README.md packaging pyproject.toml requirements.txt build/debug/lib/
	find tests -name '*.py' -exec cp --parents {} build/debug/lib/ ';'
	cd build/debug/lib && PYTHONPATH=. ../../../$(BIN)/python -m pytest -c ../../../pyproject.toml --rootdir . tests/unit tests/model tests/sim --deselect tests/unit/test_bench.py --deselect tests/unit/test_packaging.py

sim: build
	$(BIN)/python -m tests.sim.run --seeds $(or $(SEEDS),20)

fuzz: build
	$(BIN)/python -m tests.fuzz.run --seconds $(or $(SECONDS),60)

resources: build
	MINOOTS_RESOURCES=all MINOOTS_ASKS=1000 $(BIN)/python -m pytest -s tests/e2e/test_syscalls.py tests/e2e/test_company.py tests/e2e/test_resources.py

mutants: build
	$(BIN)/python -m tests.mutants.run $(MUTANTS)

proof: build
	$(BIN)/python -m tests.proof.run $(if $(HOURS),--hours $(HOURS))

bench: build
	$(BIN)/minoots bench all
	$(MAKE) bench-micro

bench-micro: build
	$(BIN)/python -m pytest bench/micro --benchmark-json=build/micro.json
	$(BIN)/python -m bench.summary build/micro.json bench/results/micro.json

wheel: build
	$(BIN)/python packaging/wheel.py

binary: build
	$(BIN)/python packaging/binary.py

deb:
	$(BIN)/python packaging/deb.py

prove:
	packaging/prove

again:
	$(BIN)/python packaging/again.py

release:
	$(BIN)/python packaging/release.py $(if $(KEY),--key $(KEY))

clean:
	rm -rf .venv build dist *.egg-info
	find engine edgenode bench tests -name '*.so' -delete
