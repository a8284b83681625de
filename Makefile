# make install | demo | test | lint | clean
# Everything is installed into the active virtual environment, or into .venv, which is made if it is not there.

PYTHON ?= python3
VENV := $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.medgan-installed

DEMO := runs/demo
# `make test SLOW=1` runs the tests of minutes too, as .ci/run does.
MARKED := $(if $(SLOW),,-m "not slow")

.DEFAULT_GOAL := help
.PHONY: help install chromium demo test lint clean

help:
	@echo "make install   a virtual environment with medgan and what its tests need"
	@echo "make chromium  the browser in which a test opens the report, where it is missing (Debian; root or sudo)"
	@echo "make demo      train on built-in CT phantoms and put the lesions into scans, in under 8 minutes"
	@echo "make test      ruff, mypy and the tests, in under 10 minutes; SLOW=1 adds the slow ones"
	@echo "make lint      ruff and mypy alone"
	@echo "make clean     remove caches, builds and the demo"

install: $(INSTALLED)

# The pinned torch comes first: asked for by another package's range it would be another, much larger build.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One test opens the report of `medgan evaluate` in a real browser; without one it skips and says so.
chromium:
	@if command -v chromium >/dev/null; then :; \
	elif ! command -v apt-get >/dev/null; then echo "no apt-get: install chromium by hand"; \
	else ROOT=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
	  { $$ROOT apt-get update -qq && $$ROOT apt-get install -y -qq --no-install-recommends chromium fonts-liberation; } \
	  >/dev/null 2>&1 || echo "chromium could not be installed: the test that needs it will skip"; fi

demo: $(INSTALLED)
	rm -rf $(DEMO) $(DEMO)-x2
	$(BIN)/medgan train --modality ct --out $(DEMO)
	$(BIN)/medgan augment $(DEMO)/phantoms --factor 2 --model $(DEMO) --out $(DEMO)-x2
	@echo
	@echo "Scans before, with the new mask, and after:  $(DEMO)-x2/examples.png"
	@echo "What the generator drew in training:         $$(ls $(DEMO)/samples/*.png | tail -n 1)"
	@echo "The data set with synthetic cases added:     $(DEMO)-x2"

# Two processes share the cores, so each may have one thread.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(MARKED)

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

clean:
	rm -rf $(DEMO) $(DEMO)-x2 build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
