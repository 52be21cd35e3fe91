# Two commands for everybody: `make demo` and `make test`. `make example` measures what closures are
# worth to a back end (docs/back_end.md), `make soak` how much the package withstands
# (docs/reliability.md).
# Python 3.10 to 3.12; another than python3 by `make PYTHON=python3.11 test`.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$p && break; done || true)
SHELL := /bin/bash
ENV := . .venv/env.sh
BUILT := $(ENV) && . install/setup.bash

.PHONY: demo example test soak env env-train env-examples build lint unit nodes clean

demo: build
	@$(BUILT) && python -m hashvpr_ros.cli.main demo $(if $(DATA),--data "$(DATA)") $(DEMO_ARGS)

example: env-examples
	@$(ENV) && PYTHONPATH="$(CURDIR):$$PYTHONPATH" python examples/close_the_loop.py $(EXAMPLE_ARGS)

test: lint unit nodes

env:
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.10 to 3.12; none was found" >&2; exit 2; }
	@$(PYTHON) scripts/setup_env.py

# torch is for training, export and their tests: a demo does without.
env-train: env
	@$(PYTHON) scripts/setup_env.py train

# GTSAM and evo; a demo does without these, too.
env-examples: env
	@$(PYTHON) scripts/setup_env.py examples

lint: env-train
	@$(ENV) && ruff check . && ruff format --check . && \
		mypy hashvpr_ros scripts/setup_env.py examples && lint-imports

# A core for each of the two: threads that wait for one another while the other worker runs can take
# ten times as long.
unit: env-train env-examples
	@$(ENV) && OMP_NUM_THREADS=1 python -m pytest test/unit -n 2 --dist loadfile

build: env
	@$(ENV) && scripts/build.sh

nodes: build env-examples
	@$(BUILT) && rm -rf build/hashvpr_ros/test_results && colcon test --event-handlers console_direct+ \
		--return-code-on-test-failure && colcon test-result --verbose

# Some 20 minutes: fuzzing, kills and cycles in numbers that `make test` has no time for. The table
# goes to docs/reliability.md.
soak: build
	@$(BUILT) && PYTHONPATH="$(CURDIR):$$PYTHONPATH" python test/soak/soak.py $(SOAK_ARGS) \
		$(if $(SOAK_ARGS),,&& HASHVPR_SOAK=1 python -m pytest test/ros/test_signals.py)

clean:
	rm -rf .venv build install log demo_output close_the_loop
