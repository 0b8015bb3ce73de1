# Every target sets up what it needs. `make sft RECIPE=… BASE=… RUN=… GPUS=… ARGS="key=value …"`, `make eval RUN=runs/…`.
# `make merge publish ask demo serve RUN=runs/…` take the words of their verbs in ARGS, `make publish` also REPO=owner/name.
# On several machines the same command runs on each, with NNODES=… NODE_RANK=… MASTER_ADDR=….
.DEFAULT_GOAL := help
.PHONY: help setup sft eval merge publish ask demo serve plan synth cache prep show dry-run check test test-slow browser bench clean

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3
RECIPE ?= tiny
BASE   ?=
RUN    ?=
AGAINST ?=
GPUS   ?= 1
DEEPSPEED ?=
NNODES ?= 1
NODE_RANK ?= 0
MASTER_ADDR ?= localhost
MASTER_PORT ?= 29500
GPU    ?=
REPO   ?=
IMAGE  ?=
SOURCE ?=
MODEL  ?=
ENDPOINT ?=
QUESTION ?=
ARGS   ?=
DATASET ?= demo
RAW    ?= data/raw/$(DATASET)
OUT    ?= data/$(DATASET)

OVERRIDES := $(if $(BASE),base=$(BASE)) $(if $(RUN),run=$(RUN)) $(if $(DEEPSPEED),train.deepspeed=$(DEEPSPEED)) $(ARGS)
# DeepSpeed needs a process group even on one GPU, so it always goes through torchrun.
NODES := $(if $(filter-out 1,$(NNODES)),--nnodes $(NNODES) --node-rank $(NODE_RANK) --master-addr $(MASTER_ADDR) --master-port $(MASTER_PORT),--standalone)
LAUNCH := $(if $(or $(filter-out 1,$(GPUS) $(NNODES)),$(findstring deepspeed,$(OVERRIDES))),$(BIN)/torchrun $(NODES) --nproc-per-node $(GPUS),$(BIN)/python) -m skinvl

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## install everything, pinned, into .venv

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "skinvl needs Python 3.11 or newer; set PYTHON=python3.12, say")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
# Compiled once, here: every rank imports 5,000 modules, and some machines forbid Python to keep what it compiled itself.
	@uv="$$(command -v uv || echo $(BIN)/uv)"; "$$uv" pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

data/demo/card.json: | setup
	$(BIN)/skinvl prep demo data/raw/demo data/demo

sft: setup $(if $(filter tiny,$(RECIPE)),data/demo/card.json)  ## train an adapter: RECIPE, BASE, RUN, GPUS, NNODES, DEEPSPEED, ARGS
	$(LAUNCH) sft $(RECIPE) $(OVERRIDES)

eval: setup  ## answer, classify, score and report: RUN=runs/… (or RECIPE and BASE, without an adapter), AGAINST, GPUS, ARGS
	$(LAUNCH) eval $(or $(RUN),$(RECIPE)) $(if $(RUN),,$(if $(BASE),base=$(BASE))) $(if $(AGAINST),--against $(AGAINST)) $(ARGS)

merge: setup  ## fold the adapter of RUN into its base, and check
	$(BIN)/skinvl merge $(RUN) $(ARGS)

publish: setup  ## write and check the card and the files of RUN, and upload them to REPO (ARGS=--dry-run: not)
	$(BIN)/skinvl publish $(RUN) $(REPO) $(ARGS)

ask: setup  ## ask RUN about IMAGE in the terminal: QUESTION, or as many as you like
	$(BIN)/skinvl ask $(RUN) $(IMAGE) $(if $(QUESTION),"$(QUESTION)") $(ARGS)

demo: setup  ## open a page on which RUN is asked, beside its base
	$(BIN)/skinvl demo $(RUN) $(ARGS)

serve: setup  ## serve RUN by the OpenAI-compatible API, checked first
	$(BIN)/skinvl serve $(RUN) $(ARGS)

synth: setup  ## have MODEL at ENDPOINT write conversations about SOURCE's images, into OUT
	$(BIN)/skinvl synth $(SOURCE) $(OUT) --model $(MODEL) --endpoint $(ENDPOINT) $(ARGS)

plan: setup  ## say what RECIPE on BASE needs in memory and hours on GPU and GPUS
	$(BIN)/skinvl plan $(RECIPE) $(if $(BASE),base=$(BASE)) $(if $(GPU),--gpu $(GPU)) --gpus $(GPUS) $(ARGS)

cache: setup  ## compute the vision features of a recipe's images ahead of sft
	$(LAUNCH) cache $(RECIPE) $(OVERRIDES)

dry-run: setup  ## show what a recipe would train on a base, without its weights
	$(BIN)/skinvl sft $(RECIPE) $(OVERRIDES) --dry-run

prep: setup  ## turn raw data into a source: DATASET, RAW, OUT
	$(BIN)/skinvl prep $(DATASET) $(RAW) $(OUT)

show: setup $(if $(filter tiny,$(RECIPE)),data/demo/card.json)  ## paint what is trained in a few conversations of a recipe
	$(BIN)/skinvl show $(RECIPE) $(OVERRIDES)

check: setup  ## ruff, mypy --strict and the layer test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

test: setup  ## the tests, at most 10 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu" $(TESTS)

browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
		root=$$(test $$(id -u) = 0 || echo sudo); \
		$$root apt-get update -qq && $$root apt-get install -y -qq --no-install-recommends chromium chromium-driver; }

test-slow: setup browser  ## the rest: distributed runs, whole trainings
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not alone and not gpu" $(TESTS) || test $$? = 5
	$(BIN)/python -m pytest -m "slow and alone and not gpu" $(TESTS) || test $$? = 5

bench: setup  ## the speed claims, each beside its alternative
	$(BIN)/python benchmarks/prep.py
	$(BIN)/python benchmarks/hashes.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/classify.py
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/synth.py
	$(BIN)/python benchmarks/peers.py

clean:  ## remove what was made here, data and runs excepted
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache bases cache
