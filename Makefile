# make repro   the whole pipeline: walkers → archives → catalogue → silhouettes → training → tables and runs
# make test    the tests            make lint    ruff and mypy            make ui    MLflow's UI   PORT=5000
# make pictures   README's pictures of MLflow's UI, taken anew
# make soak    the long tests: trainings killed again and again
# make promote   `champion` to the best evaluated model        make serve   a model over HTTP, here only
# make onnx    the fine-tuned network as exports/finetune.onnx
# make bench   speed against plain versions: one table, and benchmarks/latest.json   ARGS="--quick"
# make ablations   what each part of the network is worth: docs/ablations.md   ARGS="--seeds 3 --jobs 1"
# make sync-runs   to MLflow with what it has not got: the server was down, a stage was killed, or
#                  DVC restored a result instead of running its stage
# make lock    renew requirements.lock from pyproject.toml
# make setup   .venv alone, which each of the others sets up by itself
# PYTHON=python3.12 chooses the interpreter, ARGS="--dry" is passed on.

PYTHON ?= python3
ARGS ?=
PORT ?= 5000
MODEL ?= models:/gaitgl@champion
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: repro test soak bench ablations lint ui pictures sync-runs promote serve onnx lock setup

# dvc 3.67 cannot dry-run a stage whose inputs are not made yet; before the first run all are due
DRY := $(findstring --dry,$(ARGS))
DUE := $(if $(DRY),$(if $(wildcard reports/*/metrics.json),,--force))

repro: $(READY)
	@python -m pipeline.check
	@dvc repro $(ARGS) $(DUE)
	@$(if $(DRY),,python -m pipeline.restored && python -m pipeline.results)

test: $(READY)
	@OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(READY)
	@OMP_NUM_THREADS=1 python -m pytest -n auto -m soak -rA $(ARGS)

bench: $(READY)
	@python -m benchmarks $(ARGS)

ablations: $(READY)
	@python -m pipeline.ablations $(ARGS)

lint: $(READY)
	@ruff check . && ruff format --check . && mypy

ui: $(READY)
	-@python -m pipeline.restored
	@python -m pipeline.ui $(PORT) $(ARGS)

pictures: $(READY)
	@python -m tests.lab_book docs/images

sync-runs: $(READY)
	@python -m pipeline.sync_runs && python -m pipeline.restored

promote: $(READY)
	@python -m pipeline.promote $(ARGS)

serve: PORT = 5001
serve: $(READY)
	@# becomes mlflow models serve, with the arguments that follow the model
	@exec python -m pipeline.serve "$(MODEL)" --host 127.0.0.1 --port $(PORT) $(ARGS)

onnx: $(READY)
	@python -m pipeline.onnx_export $(ARGS)

setup: $(READY)

# opencv-python wants libGL and X11 from the system; where they are missing (servers, containers)
# the same release of the same library without its windows serves as well.
$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@# no pip is in it where this was interrupted
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) from requirements.lock (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
	  echo "no libGL here: opencv-python-headless takes the place of opencv-python"; \
	  $(BIN)/python -m pip uninstall --quiet --yes opencv-python; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    "$$(sed -n 's/^opencv-python==/opencv-python-headless==/p' requirements.lock)"; }
	@touch $@

# torch pins its CUDA packages itself, and a CPU build has none: they stay out of the lock.
lock: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --quiet \
	  --no-annotate --no-header $(ARGS) | sed -E '/^nvidia-ml-py==/!{/^(nvidia-|cuda-|triton==)/d}' > requirements.lock
