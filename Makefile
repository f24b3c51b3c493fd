# Every target sets up what it needs in .venv, and is quick the second time: a stamp file remembers what was installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
DEMO_STAMP := $(VENV)/.installed-demo
TEST_STAMP := $(VENV)/.installed-test
BENCH_ARGS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
SIM_ARGS ?= --seeds 1000 --steps 10000

.PHONY: demo test test-clients test-cluster tests-of-pods tests-beside check fmt bench bench-peers conformance-peers sim protos clean

demo: $(DEMO_STAMP)
	$(BIN)/hexcomb demo $(DEMO_ARGS)

test: $(TEST_STAMP)
	$(MAKE) --no-print-directory lint
	@rm -f $(SELECTED)
	$(MAKE) --no-print-directory -j2 tests-of-pods tests-beside
	@test -e $(SELECTED) || { echo 'PYTEST_ARGS selects no test'; exit 5; }

# pytest exits with 5 where it selects no test. What PYTEST_ARGS asks for may lie in one of the two parts alone.
SELECTED := $(VENV)/.tests-selected
NO_FAULT := $(if $(PYTEST_ARGS),5,0)
ended = case $$status in 0) touch $(SELECTED);; $(NO_FAULT)) ;; *) exit $$status;; esac

tests-of-pods:
	@$(BIN)/python -m pytest -q -m "not clients" tests/e2e $(PYTEST_ARGS); status=$$?; $(ended)

# Clients and servers of others, each as its maker ships it, in environments of their own under .cache/.
test-clients: $(TEST_STAMP)
	$(BIN)/python -m pytest -q -m clients tests $(PYTEST_ARGS)

# The controller against a real API server: built from its Go module the first time, which takes many minutes.
test-cluster: $(TEST_STAMP)
	$(BIN)/python -m tests.cluster.kubernetes_programs
	$(BIN)/python -m pytest -q tests/cluster $(PYTEST_ARGS)

# Real pods mostly wait: for leases, deadlines, each other. What only computes takes the processor meanwhile, at a lower
# priority (a third as much as a pod where both want it), so that the pods hardly notice. What it prints comes at its end.
tests-beside:
	@nice -n 5 $(BIN)/python -m pytest -q -m "not clients" -p no:cacheprovider tests/unit tests/property tests/contract tests/sim $(PYTEST_ARGS) \
		> $(VENV)/tests-beside.log 2>&1; status=$$?; cat $(VENV)/tests-beside.log; $(ended)

# The quick part: style, types, import contracts, unit and property tests.
check: $(TEST_STAMP)
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -q tests/unit tests/property

.PHONY: lint
lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fmt: $(TEST_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(TEST_STAMP)
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

# Beside the servers that people use today; each is installed in an environment of its own, 4 GB in all, the first time.
bench-peers: $(TEST_STAMP)
	$(BIN)/python -m tests.bench.peers $(BENCH_ARGS)

# The conformance suite against Hexcomb, MLServer, the KServe SDK and Triton; tables into its README.
conformance-peers: $(TEST_STAMP)
	$(BIN)/python -m tests.conformance.peers --write-readme

# Whole pools on virtual time, against faults drawn from seeds.
sim: $(TEST_STAMP)
	$(BIN)/python -m mesh.simulation $(SIM_ARGS)

# Code from the protos of mesh/wire and of placement/store/etcd_api, made by the compiler whose output runs on
# protobuf 6 and 7 alike.
protos: $(VENV)/.installed-protos
	$(VENV)/protos/bin/python mesh/wire/generate.py

$(VENV)/.installed-protos:
	$(PYTHON) -m venv $(VENV)/protos
	$(VENV)/protos/bin/pip install --quiet grpcio-tools==1.72.2 "setuptools<81"
	touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hexcomb needs Python 3.11 or newer; say which with `make PYTHON=/path/to/python3.11 ...`")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip

$(DEMO_STAMP): pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV) for the demo (about a minute the first time) ..."
	$(PIP) install --quiet -e '.[demo]'
	@touch $@

# torch comes from here: its CUDA libraries are gigabytes, so the demo does not ask for it.
$(TEST_STAMP): pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV) for the tests, torch included (several minutes the first time) ..."
	$(PIP) install --quiet -e '.[test]'
	@touch $@ $(DEMO_STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
