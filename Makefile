# make setup | quickstart | flowers | test | lint | docs: each works alone on a machine that has Python >= 3.11 and a package index.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
QUICKSTART := outputs/quickstart/$(shell date +%Y-%m-%d_%H-%M-%S)

.PHONY: help setup quickstart flowers test newest lint docs
help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(VENV)/installed ## create the environment in .venv

# uv installs in seconds; where it can neither be found nor be fetched, pip does the same in minutes, but for Gradio, MLflow
# and trackio, which forbid pinned versions: uv overrides that (tool.uv in pyproject.toml), and without them their tests are skipped
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "flowergen needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@if command -v uv >/dev/null; then uv venv --quiet --allow-existing --seed --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV); \
	else $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: apt-get install python3-venv"; exit 1; }; fi
	@command -v uv >/dev/null || $(BIN)/pip install --quiet uv || echo "uv is not available: using pip"
	@if uv=$$(command -v uv || ls $(BIN)/uv 2>/dev/null); then \
		$$uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint $(CONSTRAINTS) --editable '.[dev,app,mlflow,trackio]'; \
	else $(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'; fi
	@touch $@

quickstart: setup ## train on drawn flowers: autoencoder, diffusion by class, pictures and GIFs, in five minutes
	$(BIN)/python -m flowergen.train experiment=vae_gan_tiny trainer.max_epochs=6 hydra.run.dir=$(QUICKSTART)/autoencoder
	$(BIN)/python -m flowergen.train experiment=ldm_tiny autoencoder=$(QUICKSTART)/autoencoder hydra.run.dir=$(QUICKSTART)/diffusion
	$(BIN)/python -m flowergen.sample run=$(QUICKSTART)/diffusion out=$(QUICKSTART)/samples

FLOWERS := recipe minutes data data.root paths.cache_dir seed out
flowers: setup ## train on Oxford 102 Flowers, downloaded unless data.root=DIR is given: new flowers by class and a page, in an hour
	$(BIN)/python scripts/reproduce.py $(foreach key,$(FLOWERS),$(if $(filter command,$(origin $(key))),$(key)='$($(key))'))

test: setup ## run all tests
	$(BIN)/python -m pytest

newest: ## in an environment of its own, test what is used of Lightning, Hydra and PyTorch without being documented, in their newest releases
	rm -rf $(VENV)-newest
	$(MAKE) setup VENV=$(VENV)-newest CONSTRAINTS=/dev/null
	$(VENV)-newest/bin/python -m pytest tests/test_lightning_internals.py tests/test_hydra_internals.py tests/test_torch_internals.py

lint: setup ## check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/docs ## README, docs, API and configs as a web site, build/site/index.html; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/docs: $(VENV)/installed
	@if uv=$$(command -v uv || ls $(BIN)/uv 2>/dev/null); then $$uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[docs]'; \
	else $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'; fi
	@touch $@
