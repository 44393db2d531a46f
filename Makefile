# Every target makes its own environment if there is none; see README.md.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= demo
BIN := $(VENV)/bin
READY := $(VENV)/.installed
export MPLBACKEND := Agg

DEMO_STAGES := fit:vqvae predict:encode fit:top fit:bottom fit:classifier predict:sample predict:complete \
	fit:cas test:cas test:classifier test:eval

.PHONY: help demo test lint encode-latents sample complete cas eval-fid report clean

help:
	@echo "make demo                        the whole pipeline on embedded digits, nine minutes on two cores"
	@echo "make test | make lint            the tests | ruff"
	@echo "make encode-latents CONFIG=demo  images -> latent shards (configs/demo_encode.yaml)"
	@echo "make sample CONFIG=demo          class-conditional samples (configs/demo_sample.yaml)"
	@echo "make complete CONFIG=demo        images whose upper half is given (configs/demo_complete.yaml)"
	@echo "make cas CONFIG=demo             classification accuracy score (configs/demo_cas.yaml)"
	@echo "make eval-fid CONFIG=demo        every figure (configs/demo_eval.yaml), then the report"
	@echo "make report CONFIG=demo          runs/demo/report.html of what the stages have left"
	@echo "make clean                       removes the environment and caches; runs/ stays"

demo: $(READY)
	@PATH="$(abspath $(BIN)):$$PATH"; started=$$(date +%s); \
	elapsed() { s=$$(( $$(date +%s) - started )); printf '%d:%02d' $$((s / 60)) $$((s % 60)); }; \
	for stage in $(DEMO_STAGES); do \
		command="lightning $${stage%%:*} -c configs/demo_$${stage#*:}.yaml"; \
		echo "[$$(elapsed)] $$command"; \
		$$command || exit 1; \
	done; \
	echo "[$$(elapsed)] python experiments/report.py runs/demo"; \
	python experiments/report.py runs/demo && \
	echo "[$$(elapsed)] python experiments/recognise_digits.py runs/demo/samples --fractions 1 0.5 0.25" && \
	python experiments/recognise_digits.py runs/demo/samples --fractions 1 0.5 0.25 && \
	echo "[$$(elapsed)] demo done"

encode-latents: $(READY)
	$(BIN)/lightning predict -c configs/$(CONFIG)_encode.yaml

complete: $(READY)
	$(BIN)/lightning predict -c configs/$(CONFIG)_complete.yaml

sample: $(READY)
	$(BIN)/lightning predict -c configs/$(CONFIG)_sample.yaml

eval-fid: $(READY)
	$(BIN)/lightning test -c configs/$(CONFIG)_eval.yaml
	$(BIN)/python experiments/report.py runs/$(CONFIG)

report: $(READY)
	$(BIN)/python experiments/report.py runs/$(CONFIG)

cas: $(READY)
	$(BIN)/lightning fit -c configs/$(CONFIG)_cas.yaml
	$(BIN)/lightning test -c configs/$(CONFIG)_cas.yaml
	$(BIN)/lightning test -c configs/$(CONFIG)_classifier.yaml
	$(BIN)/python experiments/table2.py runs/$(CONFIG)

test: $(READY) lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
	find vqvae2 tests experiments -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "vqvae2 needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making the environment $(VENV) (once, a few minutes: PyTorch is large) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)
