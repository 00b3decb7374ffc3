# `make demo` and `make test` need python3 >= 3.11, make and a package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# Without compiled bytecode `import tensorflow` takes about three times as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo multi-worker-demo device-matrix bench test test-all lint clean

help:
	@echo "make demo               train on real handwritten digits, draw what the model generates, export it for a device"
	@echo "make multi-worker-demo  train and draw with two workers on this machine, as two machines would"
	@echo "make device-matrix      paint with every LiteRT and tflite-runtime of the index, and update docs/devices.md"
	@echo "make bench              measure training, sampling, start and input beside PyTorch, and write benchmarks/results.md"
	@echo "make test               run the tests"
	@echo "make test-all           run the slow ones too, which fuzz files and kill runs"
	@echo "make lint               check style with ruff and types with mypy"
	@echo "make clean              remove .venv, .bench and demo"

setup: $(INSTALLED)

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kddpm needs python3 >= 3.11, found " + sys.version.split()[0])'
	@echo "Setting up $(VENV) (about a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

# The sampler of the digits' run, so that the files paint the pictures of demo/grid.png.
EXPORT := -m export --run_dir=demo/run --sampler=ancestral --num_steps=250

demo: $(INSTALLED)
	@$(BIN)/python train.py --preset=digits --run_dir=demo/run
	@$(BIN)/python sample.py --run_dir=demo/run --seeds=0-99 --out=demo/grid.png
	@$(BIN)/python sample.py --run_dir=demo/run --seeds=0-24 --out=demo/denoising.gif
	@$(BIN)/python sample.py --run_dir=demo/run --seeds=0-7 --frames=12 --out=demo/filmstrip.png
	@$(BIN)/python $(EXPORT) --precision=float32 --out=demo/digits_float32.tflite
	@$(BIN)/python $(EXPORT) --precision=int8 --out=demo/digits_int8.tflite
	@$(BIN)/python export/edge/generate.py demo/digits_float32.tflite --seeds=0-99 --out=demo/device_float32.png
	@$(BIN)/python export/edge/generate.py demo/digits_int8.tflite --seeds=0-99 --out=demo/device_int8.png
	@echo
	@echo "100 digits that the model generated     demo/grid.png"
	@echo "noise becoming digits                   demo/denoising.gif, demo/filmstrip.png"
	@echo "the same from files for a device        demo/device_float32.png, demo/device_int8.png"
	@echo "the loss while it learned               demo/run/loss.png"
	@echo "pictures at every stage of training     demo/run/samples/"

GROUP := -m kddpm.local_cluster --workers=2

multi-worker-demo: $(INSTALLED)
	@$(BIN)/python $(GROUP) train.py --strategy=multi_worker --preset=digits --steps=1000 --run_dir=demo/group
	@$(BIN)/python $(GROUP) sample.py --strategy=multi_worker --run_dir=demo/group --seeds=0-63 --out=demo/group.png
	@echo
	@echo "64 digits after 1,000 steps of two workers   demo/group.png"
	@echo "killed in between, it goes on where it was   make multi-worker-demo"

# Half an hour for the first time; the environments stay in demo/runtimes.
device-matrix: $(INSTALLED)
	@$(BIN)/python train.py --preset=digits --run_dir=demo/run
	@for precision in float32 float16 int8; do \
	  $(BIN)/python -m export --run_dir=demo/run --sampler=ancestral --num_steps=50 --precision=$$precision \
	    --out=demo/matrix/$$precision.tflite || exit 1; \
	done
	@$(BIN)/python benchmarks/device_matrix.py --files=demo/matrix

# An hour on two cores that nothing else uses. PyTorch and the project each have an environment of their own.
BENCH := .bench

$(BENCH)/installed: benchmarks/requirements.txt
	@echo "Setting up $(BENCH) (some minutes) ..."
	@$(PYTHON) -m venv $(BENCH)
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements.txt
	@$(BENCH)/bin/python -m compileall -qq -j 0 $(BENCH)/lib || true
	@touch $@

bench: $(INSTALLED) $(BENCH)/installed
	@$(BIN)/python benchmarks/speed/bench.py --torch=$(BENCH)/bin/python

# Before the tests, which run in two processes: both would fetch them. Without npm the tests of the page are skipped.
NPM_PACKAGES := export/web/node_modules/.package-lock.json

$(NPM_PACKAGES): export/web/package-lock.json
	@-if command -v npm >/dev/null; then npm ci --prefix export/web --ignore-scripts --no-audit --no-fund --loglevel=error; fi

# Each has half of the tests in a row, so that what they share is mostly made once; who is done takes some of the other's.
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=worksteal --durations=30 --durations-min=10

test: $(INSTALLED) $(NPM_PACKAGES)
	@$(PYTEST)

test-all: $(INSTALLED) $(NPM_PACKAGES)
	@$(PYTEST) -m "slow or not slow"

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	rm -rf $(VENV) $(BENCH) demo
