# Every target uses the active environment if this package is in it, and makes one of its own if not; see README.md.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= demo
RUN ?= $(or $(shell sed -n 's/^run: *//p' configs/$(CONFIG).yaml 2>/dev/null),runs/$(CONFIG))
ifeq ($(origin VENV),file)
ACTIVE := $(if $(VIRTUAL_ENV)$(CONDA_PREFIX),$(shell cd / && python -c 'import os, sys, vqvae2; \
	print(os.path.dirname(sys.executable))' 2>/dev/null))
endif
BIN := $(or $(ACTIVE),$(VENV)/bin)
READY := $(if $(ACTIVE),,$(VENV)/.installed)
export MPLBACKEND := Agg

.PHONY: help demo test lint encode-latents sample complete inpaint cas eval-fid report compare clean

help:
	@echo "Options: CONFIG=NAME, the recipe; RUN=FOLDER, the folder of its run (if not given, the recipe's own, or runs/NAME)."
	@echo "make demo                        the whole pipeline on embedded digits, about 13 minutes on two cores;"
	@echo "                                 with CONFIG=NAME all jobs of that recipe in their order"
	@echo "make test | make lint            the tests | ruff"
	@echo "make encode-latents CONFIG=demo  images -> latent shards (configs/demo_encode.yaml)"
	@echo "make sample CONFIG=demo          class-conditional samples (configs/demo_sample.yaml)"
	@echo "make complete CONFIG=demo        completes images from their upper half (configs/demo_complete.yaml)"
	@echo "make inpaint CONFIG=demo         repaints what a mask hides of pictures (configs/demo_inpaint.yaml)"
	@echo "make cas CONFIG=demo             classification accuracy score (configs/demo_cas.yaml)"
	@echo "make eval-fid CONFIG=demo        every figure (configs/demo_eval.yaml), then the report"
	@echo "make report CONFIG=demo          writes runs/demo/report.html from the results of all stages"
	@echo "make compare RUNS='runs/a runs/b' one page that compares several runs"
	@echo "make clean                       removes the environment and caches; runs/ stays"

demo: $(READY)
	@PATH="$(abspath $(BIN)):$$PATH"; started=$$(date +%s); \
	elapsed() { s=$$(( $$(date +%s) - started )); printf '%d:%02d' $$((s / 60)) $$((s % 60)); }; \
	stages=$$(python -m vqvae2.cli.stages configs/$(CONFIG).yaml) || exit 1; \
	set -- $$stages; \
	while [ $$# -gt 0 ]; do \
		command="lightning $$1 -c configs/$(CONFIG)_$$2.yaml --run $(RUN)"; \
		shift 2; \
		echo "[$$(elapsed)] $$command"; \
		$$command || exit 1; \
	done; \
	echo "[$$(elapsed)] python experiments/report.py $(RUN)"; \
	python experiments/report.py $(RUN) || exit 1; \
	case $(CONFIG) in *demo) \
		echo "[$$(elapsed)] python experiments/recognise_digits.py $(RUN)/samples --fractions 1 0.5 0.25"; \
		python experiments/recognise_digits.py $(RUN)/samples --fractions 1 0.5 0.25 || exit 1;; \
	esac; \
	echo "[$$(elapsed)] demo done"

encode-latents: $(READY)
	$(BIN)/lightning predict -c configs/$(CONFIG)_encode.yaml --run $(RUN)

complete: $(READY)
	$(BIN)/lightning predict -c configs/$(CONFIG)_complete.yaml --run $(RUN)

inpaint: $(READY)
	$(BIN)/lightning predict -c configs/$(CONFIG)_inpaint.yaml --run $(RUN)

sample: $(READY)
	$(BIN)/lightning predict -c configs/$(CONFIG)_sample.yaml --run $(RUN)

eval-fid: $(READY)
	$(BIN)/lightning test -c configs/$(CONFIG)_eval.yaml --run $(RUN)
	$(BIN)/python experiments/report.py $(RUN)

report: $(READY)
	$(BIN)/python experiments/report.py $(RUN)

compare: $(READY)
	$(BIN)/python experiments/compare.py $(RUNS)

cas: $(READY)
	$(BIN)/lightning fit -c configs/$(CONFIG)_cas.yaml --run $(RUN)
	$(BIN)/lightning test -c configs/$(CONFIG)_cas.yaml --run $(RUN)
	$(BIN)/lightning test -c configs/$(CONFIG)_classifier.yaml --run $(RUN)
	$(BIN)/python experiments/table2.py $(RUN)

test: $(READY) lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
	find vqvae2 tests experiments -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "vqvae2 needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making the environment $(VENV) (once, a few minutes: PyTorch is large) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
