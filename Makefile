# make demo   from a fresh clone to a trained and evaluated Sparse-MLP
# make test   every test that this machine can run
# make lint   style

PYTHON ?= python3
VENV   ?= .venv
RANKS  ?= 2

BIN   := $(abspath $(VENV))/bin
READY := $(VENV)/.ready

.PHONY: demo test lint

demo: $(READY)
	$(BIN)/sparse-mlp-ds shards make digits data/digits
	PATH="$(BIN):$$PATH" deepspeed --num_gpus $(RANKS) train.py --ds_config ds_configs/moe.json

test: $(READY)
	PATH="$(BIN):$$PATH" python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@
