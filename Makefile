# Every target first makes sure that .venv holds the locked packages; nothing else is needed but
# Python 3.11 or newer and git.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := featurestore scoring streams livevalue
LOCKS := requirements/base.txt requirements/train.txt requirements/dev.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Bytecode is made at the end, by all cores at once: pip would take a minute for it.
PIP_INSTALL := $(PIP) install --no-compile --quiet
COMPILE := $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host
DEMO ?=
CHAOS ?=
TESTS ?= tests
# Test files side by side; each job has an embedded stack of its own, 0.9 GB in all. More than half of
# a test is waiting, so that two jobs more than there are cores fill them.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 6 ? n + 2 : 8)))
# In the order that tests/conftest.py gives: those that take long begin first.
SIDE_BY_SIDE = -n $(JOBS) --dist loadfile --no-loadscope-reorder
MINUTES ?= 30
OLD ?=

export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo test long fuzz check lint types imports contracts docs bench chaos service crashes soak failover upgrade audit-deps lock clean

help: ## What there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(STAMP) ## .venv with everything in it

$(STAMP): pyproject.toml $(LOCKS) requirements/torch.txt
	@echo "[1/4] virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "Python's venv module is missing: install python3-venv, or set PYTHON"; exit 1; }
	@echo "[2/4] locked packages (a few minutes the first time)"
	$(PIP_INSTALL) --progress-bar on --require-hashes $(addprefix -r ,$(LOCKS))
	@echo "[3/4] torch, for training only (the largest download)"
	$(PIP_INSTALL) --progress-bar on -r requirements/torch.txt
	@echo "[4/4] livevalue itself"
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q -j 0 -x '/tests?/|/testing/' $(VENV)/lib $(PACKAGES) || true
	@touch $@
	@echo "installed"

demo: install ## Real orders through Kafka, values moving on the terminal
	$(BIN)/livevalue demo $(DEMO)

test: install ## The tests, on an embedded Kafka and Valkey
	$(BIN)/python -m pytest -m "not long" $(SIDE_BY_SIDE) $(TESTS)

long: install ## Tests of faults, load and refusals at length, some minutes more
	$(BIN)/python -m pytest -m long $(SIDE_BY_SIDE) $(TESTS)

fuzz: install ## The property tests with 2,000 new examples each, some minutes
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile searching $(SIDE_BY_SIDE) \
		--ignore tests/e2e $(TESTS)

# TESTED=1 says that `make test` has just passed, so that CI does not run the tests twice.
check: lint types imports contracts docs $(if $(TESTED),,test) ## Lint, types, import and data contracts, docs, tests

lint: install ## Style, formatting, unsafe constructs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml $(PACKAGES)

types: install ## mypy --strict, no package exempted
	$(BIN)/mypy

imports: install ## livevalue > streams > scoring > featurestore
	$(BIN)/lint-imports

contracts: install ## JSON Schema and test vectors are what the code generates
	$(BIN)/python -m livevalue.contracts --check

docs: install ## Generated pages are current, links lead somewhere
	$(BIN)/python -m livevalue.settings_docs --check
	$(BIN)/python -m tests.links

bench: install ## Throughput and latency, into benchmarks/results/latest.json
	$(BIN)/python -m benchmarks

chaos: install ## kill -9 at random moments, then count what was lost or doubled (CHAOS="--help")
	$(BIN)/python -m benchmarks.chaos $(CHAOS)

service: install ## How long a partition goes unserved: kill -9, restart, Redis away (SERVICE="--help")
	$(BIN)/python -m benchmarks.chaos.service $(SERVICE)

crashes: install ## Let a worker die at each named point of the protocol, five times each
	$(BIN)/python -m benchmarks.crashes $(CRASHES)

soak: install ## One worker under load for 30 minutes: memory and descriptors may not grow
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

failover: install ## Masters of Redis die under load, by Sentinel and in a cluster, ten times each
	LIVEVALUE_FAILOVERS=10 LIVEVALUE_FAILOVER_EVENTS=4000 \
		$(BIN)/python -m pytest -n 0 -s -o timeout=1800 tests/e2e/test_failover.py

upgrade: install ## Two workers of two versions under load: rolled forward, back and forward (OLD=COMMIT)
	$(BIN)/python -m benchmarks.upgrade $(if $(OLD),--old $(OLD))

# Strict: without it pip-audit calls a package that its service does not answer for "no known
# vulnerabilities" and ends with 0. torch apart: where one package has a hash pip-audit wants one of
# all, and torch has none (requirements/torch.txt); without any it wants --no-deps.
AUDIT := $(BIN)/pip-audit --strict --disable-pip --progress-spinner off --timeout 15
audit-deps: install ## Known vulnerabilities of the locked packages; asks PyPI's service
	@code=0; said=$$($(AUDIT) $(addprefix -r ,$(LOCKS)) 2>&1) || code=1; \
	torch=$$($(AUDIT) --no-deps -r requirements/torch.txt 2>&1) || code=1; \
	said=$$(echo "$$said" | tail -60; echo "$$torch" | tail -60); echo "$$said"; \
	if echo "$$said" | grep -qE 'could not be audited|Max retries|ConnectionError|ServiceError|Timeout'; \
	then echo "NOT AUDITED: the vulnerability service does not answer from here"; exit 1; fi; \
	exit $$code

lock: install ## Pin the newest versions that pyproject.toml allows
	cd requirements && for set in base train dev; do \
		CUSTOM_COMPILE_COMMAND="make lock" ../$(COMPILE) --upgrade -o $$set.txt $$set.in || exit 1; \
	done

clean: ## Remove what was built here
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
