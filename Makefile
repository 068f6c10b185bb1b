# make demo | few-labels | test | format | lint | types | clean. The first call makes .venv.
PYTHON ?= python3
BIN := .venv/bin

.venv/demo: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "torchmae needs Python >= 3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing torchmae with PyTorch into .venv: some minutes, without a word"
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

.venv/dev: .venv/demo
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

.PHONY: demo few-labels test format lint types clean
demo: .venv/demo
	OMP_NUM_THREADS=1 $(BIN)/mae pretrain --preset demo  # a model this small is faster on one thread, the loader has the other core
	$(BIN)/mae neighbours runs/demo digits
	@echo "(Raw pixels do as well here, since these digits are all centred and of one size; photos are another matter.)"
	@echo
	@echo "Look at the newest picture in runs/demo/pictures/, then try your own images:  $(BIN)/mae pretrain FOLDER"

# What pre-training is worth with ten labels a class, five seeds (docs/results.md); the unlabelled images are those to train on.
few-labels: .venv/demo
	OMP_NUM_THREADS=1 $(BIN)/mae pretrain 'digits?part=train' --preset demo --epochs 100 --out runs/digits-train
	OMP_NUM_THREADS=1 $(BIN)/mae compare runs/digits-train 'digits?part=train' --val 'digits?part=test' \
	  --labels-per-class 10 --no-flip --crop-scale 0.6 1 --magnitude 0 --workers 0

test: .venv/dev
	$(BIN)/python -m pytest

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/dev
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info
