# make demo   set everything up, train Adam and UPGD on a MuJoCo task, say where the results are
# make test   set everything up and run the tests
# make lint   ruff, the arrows between rooms, and mypy

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint

demo: $(INSTALLED)
	$(BIN)/python train.py --config configs/demo.yaml --opt adam
	$(BIN)/python train.py --config configs/demo.yaml --opt upgd
	@echo
	@echo "Both are in runs/. Look at them with:"
	@echo "  source $(BIN)/activate       # in every new terminal"
	@echo "  tensorboard --logdir runs       # open the address that it prints"
	@echo "  python evaluate.py compare runs/Hopper-v4-adam runs/Hopper-v4-upgd"

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	mkdir -p build/typed && ln -sfn "$(CURDIR)" build/typed/upgd_ppo  # the root, by the package's name
	cd build/typed && "$(CURDIR)/$(BIN)/mypy" --config-file ../../pyproject.toml

# A venv without pip of its own would do; this one works on every Python ≥ 3.11.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
