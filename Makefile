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
.PHONY: help install system demo test lint clean

help:
	@echo "make install   a virtual environment with medgan and what its tests need"
	@echo "make system    a browser and a DICOM server that two tests use, where they are missing (Debian; root or sudo)"
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

# One test opens the report of `medgan evaluate` in a real browser, another sends DICOM to a real server; without them
# they skip and say so. Debian's orthanc comes with a service on ports 4242 and 8042: it is kept from starting (policy-rc.d)
# and then switched off, since the test starts a server of its own where nothing else sees it.
system:
	@command -v apt-get >/dev/null || { echo "no apt-get: install chromium and orthanc by hand"; exit 0; }; \
	export PATH="$$PATH:/usr/sbin" POLICY=/usr/sbin/policy-rc.d; MADE=; WANTED=; \
	ROOT=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
	command -v chromium >/dev/null || WANTED="chromium fonts-liberation"; \
	command -v Orthanc >/dev/null || WANTED="$$WANTED orthanc"; \
	[ -n "$$WANTED" ] || exit 0; \
	$$ROOT apt-get update -qq >/dev/null 2>&1; \
	[ -e $$POLICY ] || { MADE=1; printf '#!/bin/sh\nexit 101\n' | $$ROOT tee $$POLICY; $$ROOT chmod +x $$POLICY; } >/dev/null 2>&1; \
	for ONE in $$WANTED; do \
	  $$ROOT env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$ONE >/dev/null 2>&1 \
	  || echo "$$ONE could not be installed: the test that needs it will skip"; done; \
	case "$$WANTED" in *orthanc*) $$ROOT update-rc.d orthanc disable >/dev/null 2>&1 || :;; esac; \
	[ -z "$$MADE" ] || $$ROOT rm -f $$POLICY

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
