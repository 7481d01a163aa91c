.DEFAULT_GOAL := help
.PHONY: help setup demo test lint serve bench

RUN ?= demo
STORAGE ?= runs
ARGS ?=
python := .venv/bin/python

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 10
	@echo
	@echo 'variables, as in `make demo RUN=mine`:'
	@echo '  RUN=demo       the run, and its folder'"'"'s name (demo, serve)'
	@echo '  ARGS=...       more words for the job: --profile full, --set train.epochs=3 (demo), or for pytest (test)'
	@echo '  STORAGE=runs   the folder or URL that runs lie in (demo, serve)'
	@echo '  LOCK=cpu       the lock to install, cpu or gpu; unless given that of .venv, a new one'"'"'s by whether an'
	@echo '                 NVIDIA GPU answers (all)'
	@echo '  PYTHON=python3.11   the Python that .venv is made from (all)'

setup:  ## .venv from the lock that fits this machine
	@cluster/setup.sh

demo: setup  ## from captions to a safe encoder and its report, in the embedded world
	$(python) -m jobs.pipeline --run "$(RUN)" --set "storage=$(STORAGE)" $(ARGS)

serve: setup  ## the endpoint of a run's safe encoder, on http://127.0.0.1:8000
# Replicas take pickled calls from each other on all of the machine's addresses, so Ray's tokens stay on.
	@RAY_AUTH_MODE=token RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1 \
		.venv/bin/serve run serve.app:build_app "run=$(RUN)" "storage=$(STORAGE)"

test: setup  ## the tests
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

bench: setup  ## what is compared side by side, such as ARGS="objectives --run demo"; the speed of training by default
	OMP_NUM_THREADS=1 $(python) -m jobs.benchmark $(or $(ARGS),train)

lint: setup  ## style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy safeclip jobs serve
