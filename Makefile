# gpucloud: every recipe works from a fresh clone. PORT=9000 make run moves the server.
PYTHON ?= python3
PORT ?= 8000
VENV = .venv
RUN = $(VENV)/bin/python
MANAGE = $(RUN) manage.py

.PHONY: run dev test lint bench soak lock

# The whole cloud with a simulated fleet, and how to use it.
run: $(VENV)
	@GPUCLOUD_END_WITH_PARENT=1 PORT=$(PORT) $(MANAGE) demo

# Django's development server with reload (daphne); start workers with `manage.py runworker`.
dev: $(VENV)
	@$(MANAGE) migrate --verbosity 0
	@GPUCLOUD_DEBUG=1 $(MANAGE) runserver $(PORT)

# All tests; browser tests are skipped, with a loud line, where there is no Chromium.
test: $(VENV)
	@$(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# The checks that need no running product.
lint: $(VENV)
	@$(RUN) -m pytest -q tests/architecture

# Figures: server CPU time per request against bare ASGI on the same machine, in the same run.
bench: $(VENV)
	@$(RUN) -m tests.benchmarks.scheduler
	@$(RUN) -m tests.benchmarks.fairness
	@$(RUN) -m tests.benchmarks.gateway

# The long versions of the tests.
soak: $(VENV)
	@$(RUN) -m pytest -q -m soak --timeout 3600

# The environment alone.
$(VENV): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "gpucloud needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install -q --disable-pip-version-check uv
	@$(RUN) -m uv pip install -q --python $(VENV)/bin/python --require-hashes -r requirements.lock
	@touch $(VENV)

# Renew requirements.lock from pyproject.toml; without index addresses, with hashes.
lock:
	@$(RUN) -m uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		--extra dev --extra scale pyproject.toml -o requirements.lock
