# Every target sets itself up: .venv, with the tested versions of everything.
PYTHON ?= python3
CONSTRAINTS ?= infra/constraints.txt
BIN := .venv/bin
# Two processes of one thread each: the tests' matrices are too small for threads. tests/conftest.py says who runs what.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-all test-browser test-slurm test-gpu chaos lint bench bench-search
help:
	@echo "make demo    a search on real data, from nothing to a front (7 minutes on 2 cores in bf16, some 20 in fp32)"
	@echo "make test    the test suite, with a sample of what is crossed with each other; it says what it left out"
	@echo "make test-all  all of it"
	@echo "make test-browser  MLflow's pages and ours in a real browser (Debian's: apt-get install chromium; some minutes)"
	@echo "make test-slurm  infra/slurm under a Slurm of its own (root, Debian's slurm-wlm and munge; five minutes)"
	@echo "make test-gpu  nccl, fractions of a GPU, determinism, offload, bf16 (a machine with an NVIDIA GPU)"
	@echo "make chaos   three hosts on this machine, and everything that can fail (root, iproute2, postgresql; two hours; CHAOS='--help')"
	@echo "make lint    ruff, and mypy in strict mode"
	@echo "make bench   what a design costs beside the bare model and peft's LoRA, and the data step (10 minutes; BENCH='--size base')"
	@echo "make bench-search  the search against its peers on LCBench and FCNet, what of a front is true, how it grows, what a proposal takes, and Ray Tune on SST-2 (seven hours; each script has --help)"
	@echo "make setup   .venv with everything in it"

STAMP := .venv/.installed-$(notdir $(basename $(CONSTRAINTS)))

setup: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("petl-search needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Name another one: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[demo,dev]'
	rm -f .venv/.installed-*
	touch $@

demo: setup
	$(BIN)/petl-search run spaces/studies/demo.yaml --or-resume

test: setup
	$(PYTEST)

test-all: setup
	PETL_ALL=1 $(PYTEST)

test-browser: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[browser]'
	PETL_BROWSER=1 $(BIN)/python -m pytest tests/browser_tests

test-slurm: setup
	PETL_SLURM=1 $(BIN)/python -m pytest -s tests/system_tests/test_slurm.py

test-gpu: setup
	$(BIN)/python -m pytest -rs tests/system_tests/test_gpu.py

chaos: setup
	$(BIN)/python -m tests.chaos $(CHAOS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python tests/benchmarks/bench_designs.py $(BENCH)
	$(BIN)/python tests/benchmarks/bench_data.py

.venv-peers/.installed:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check syne-tune==0.16.0 neural-pipeline-search==0.17.0
	touch $@

# As many workers as a study here, a small and a large cluster have.
bench-search: setup .venv-peers/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[bench]'
	for workers in 4 1 16; do \
		OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/lcbench.py --workers $$workers --processes 2 \
			--peers .venv-peers/bin/python || exit 1; \
	done
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/tables.py --processes 2
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/believed.py --processes 2
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/scale.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/proposals.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/sst2.py --methods auto/asha front/halving --plot sst2.png
