# make demo      from a fresh clone to a trained and evaluated Sparse-MLP
# make demo-text  the same with text: a sparse gMLP that restores masked tokens
# make lint      style, format and types
# make test      most tests, in about ten minutes; lists at the end what it left out
# make test-all  every test that this machine can run, several hosts, Slurm, MPI and images included
# make test-images  the part of test-all that builds container images and uses them; as root, with buildah
# make test-shared  the part of test-all that needs neither images nor several hosts
# make docs      the docs as a site in site/, in an environment of its own (Python 3.11 or newer)
# make test-kubernetes  the manifests for Kubernetes against its schemas, in an environment of its own
# make test-references  our code beside flax, optax, timm and torchmetrics, in an environment of its own

PYTHON ?= python3
VENV   ?= .venv
RANKS  ?= 2
CORES  ?= 2

BIN   := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
RUN   := PATH="$(BIN):$$PATH"

.PHONY: demo demo-text docs lint test test-all test-images test-kubernetes test-references test-shared

demo: $(READY)
	$(BIN)/sparse-mlp-ds shards make digits data/digits
	$(RUN) deepspeed --log_level warning --num_gpus $(RANKS) train.py --ds_config ds_configs/moe.json

demo-text: $(READY)
	$(BIN)/sparse-mlp-ds shards make speeches data/speeches
	$(RUN) deepspeed --log_level warning --num_gpus $(RANKS) train.py --recipe speeches --ds_config ds_configs/moe.json

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Files of tests share the cores, those with long tests first, so that all cores are busy to the end; those of several
# hosts take the whole machine, one after the other.
SHARED := -n $(CORES) --dist loadfile --no-loadscope-reorder
SHARED += tests/e2e tests/ranks tests/gpu_emulated tests/references tests/unit

test: $(READY)
	$(RUN) python -m pytest -m "not long" $(SHARED)
	$(RUN) python -m pytest -m "not long" tests/cluster

test-all: $(READY)
	$(MAKE) --jobs=2 test-images test-shared
	$(RUN) python -m pytest --ignore $(IMAGES) tests/cluster

test-shared: $(READY)
	$(RUN) python -m pytest $(SHARED)

# Building images waits for the disk much of the time, which leaves the cores to other tests. What is printed comes at the
# end, so that it does not mix with what they print.
IMAGES := tests/cluster/test_images.py
test-images: $(READY)
	@printed=$$(mktemp); code=0; $(RUN) python -m pytest $(IMAGES) >$$printed 2>&1 || code=$$?; cat $$printed; rm $$printed; exit $$code

# A warning, such as a link that leads nowhere, is an error.
docs: .venv-docs/.ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "open site/index.html"

test-kubernetes: .venv-kubernetes/.ready
	.venv-kubernetes/bin/python -m pytest --noconftest tests/kubernetes

test-references:
	$(MAKE) VENV=.venv-references .venv-references/.ready
	.venv-references/bin/python -m pip install --quiet --disable-pip-version-check -r tests/references/requirements.txt
	.venv-references/bin/python -m pytest tests/references tests/references/live/packages.py tests/references/live/timm_models.py

$(READY): requirements.txt tests/requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.venv-docs/.ready: docs/site/requirements.txt
.venv-kubernetes/.ready: tests/kubernetes/requirements.txt
.venv-docs/.ready .venv-kubernetes/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@
