# make quickstart   installs into .venv and trains a small language model on real text (under 5 minutes on 2 cores)
# make test         installs if needed and runs all tests
# make check        ruff, the type checker, and the order of the rooms
# make leaderboard  trains the quickstart and a larger model, and ranks them; MODELS="FOLDER ..." adds open models, TASKS=... others than the built-in ones
# make reference    installs transformers and PyTorch too, makes tests/huggingface/fixtures anew and compares open models with them both ways, random shapes too
# PYTHON=python3.12 another Python; VENV=.venv-gpu another environment; EXTRAS=dev,serve,cuda with JAX for NVIDIA GPUs

PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= dev,serve
BIN    := $(VENV)/bin

MODELS ?=
TASKS  ?= german,english,numbers

.PHONY: quickstart test check leaderboard reference
quickstart: $(VENV)/installed
	$(BIN)/python -m llm_jax.launch experiment=quickstart

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 3

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

leaderboard: $(VENV)/installed
	$(BIN)/python -m llm_jax.launch experiment=quickstart
	$(BIN)/python -m llm_jax.launch experiment=quickstart model.embed=192 model.mlp=528 train.steps=600 run_dir=runs/quickstart/larger
	$(BIN)/python -m llm_jax.leaderboard runs/quickstart/default runs/quickstart/larger $(MODELS) tasks=$(TASKS) limit=50 too_long=left out=runs/leaderboard

reference: $(VENV)/installed-reference
	$(BIN)/python -m tools.make_huggingface_fixtures
	$(BIN)/python -m pytest -n 2 -m "slow or not slow" tests/huggingface
	$(BIN)/python -m tools.check_huggingface seeds=3
	$(BIN)/python -m tools.make_adapter_fixtures
	$(BIN)/python -m tools.check_adapters seeds=3

$(VENV)/installed-reference: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS),reference]'
	touch $@

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llm_jax needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@
