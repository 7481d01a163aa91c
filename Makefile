.DEFAULT_GOAL := help
.PHONY: help setup test lint

help:  ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 10

setup:  ## .venv from the lock that fits this machine
	@cluster/setup.sh

test: setup  ## the tests
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest

lint: setup  ## style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy safeclip
