# make demo | few-labels | quick | test | format | lint | types | docs | clean. The first call makes .venv.
PYTHON ?= python3
BIN := .venv/bin

.venv/demo: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "torchmae needs Python >= 3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing torchmae with PyTorch into .venv: takes some minutes, shows no progress"
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

.venv/dev: .venv/demo
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

.PHONY: demo few-labels quick test format lint types docs clean
demo: .venv/demo
	OMP_NUM_THREADS=1 $(BIN)/mae pretrain --preset demo --epochs 50  # one thread: a model this small is faster so
	@echo
	@echo "What are the features worth with ten labels of each digit?"
	$(BIN)/mae probe runs/demo digits --fast --labels-per-class 10
	@echo
	@echo "See the newest picture in runs/demo/pictures/. With your own images:  $(BIN)/mae pretrain FOLDER"

# Pre-training against training from scratch with ten labels a class, five seeds (docs/results.md).
few-labels: .venv/demo
	OMP_NUM_THREADS=1 $(BIN)/mae pretrain 'digits?part=train' --preset demo --epochs 100 --out runs/digits-train
	OMP_NUM_THREADS=1 $(BIN)/mae compare runs/digits-train 'digits?part=train' --val 'digits?part=test' \
	  --labels-per-class 10 --workers 0

# Pure functions, models, settings, the optimizer and the architecture: under a minute.
QUICK := tests/test_house.py tests/test_hashing.py tests/models tests/train/test_optim.py \
  tests/data/test_augment.py tests/data/test_transforms.py tests/interop/test_names.py \
  tests/settings tests/eval tests/report tests/test_disk.py tests/test_runfolder.py
quick: .venv/dev
	$(BIN)/python -m pytest $(QUICK)

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

# The documentation as a site: site/index.html. A link or a name that leads nowhere is an error; no network.
docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --quiet

clean:
	rm -rf .venv build site *.egg-info
