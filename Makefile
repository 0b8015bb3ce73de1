# Every target installs what it needs and no more: demo, serve and synth an extra, check and the tests all of them.
# `make sft RECIPE=… BASE=… RUN=… GPUS=… ARGS="key=value …"`, `make pretrain` likewise, `make eval RUN=runs/…`.
# `make merge publish ask demo serve RUN=runs/…` take the words of their verbs in ARGS, `make publish` also REPO=owner/name.
# On several machines the same command runs on each, with NNODES=… NODE_RANK=… MASTER_ADDR=….
.DEFAULT_GOAL := help
.PHONY: help prep synth look plan dry-run show sft pretrain cache eval merge publish ask demo serve setup check test test-slow browser bench gpu clean

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3
RECIPE ?= $(if $(filter pretrain,$(MAKECMDGOALS)),tiny-clip,tiny)
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
# DeepSpeed needs a process group even on one GPU, so it always goes through torchrun, which would set the threads too,
# but with six lines about it.
NODES := $(if $(filter-out 1,$(NNODES)),--nnodes $(NNODES) --node-rank $(NODE_RANK) --master-addr $(MASTER_ADDR) --master-port $(MASTER_PORT),--standalone)
LAUNCH := $(if $(or $(filter-out 1,$(GPUS) $(NNODES)),$(findstring deepspeed,$(OVERRIDES))),OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/torchrun $(NODES) --nproc-per-node $(GPUS),$(BIN)/python) -m skinvl

help:  # the targets by wing, as skinvl --help prints the verbs
	@awk -F ':.*## ' '/^##@ / { wing = substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  %-10s%-10s%s\n", wing, $$1, $$2; wing = "" }' $(MAKEFILE_LIST)

# Compiled once, here: every rank imports 5,000 modules, and some machines forbid Python to keep what it compiled itself.
INSTALL = uv="$$(command -v uv || echo $(BIN)/uv)"; "$$uv" pip install --quiet --compile-bytecode \
	--python $(BIN)/python --constraint constraints.txt --editable

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "skinvl needs Python 3.11 or newer; set PYTHON=python3.12, say")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install -qq --disable-pip-version-check uv
	@echo "installing what training and evaluation need into $(VENV), pinned; the first time this takes minutes"
	@$(INSTALL) .
	@touch $@

# With an extra of pyproject.toml: .ready-demo, .ready-serve, .ready-dev.
$(VENV)/.ready-%: $(VENV)/.ready
	@echo "installing the extra $* into $(VENV)"
	@$(INSTALL) '.[$*]'
	@touch $@

DRAWN = $(if $(filter tiny tiny-clip,$(RECIPE)),data/demo/card.json)
data/demo/card.json: | $(VENV)/.ready
	$(BIN)/skinvl prep demo data/raw/demo data/demo

##@ sources
prep: $(VENV)/.ready  ## turn raw data into a source: DATASET, RAW, OUT
	$(BIN)/skinvl prep $(DATASET) $(RAW) $(OUT)

synth: $(VENV)/.ready-serve  ## MODEL at ENDPOINT writes about SOURCE's images, into OUT
	$(BIN)/skinvl synth $(SOURCE) $(OUT) --model $(MODEL) --endpoint $(ENDPOINT) $(ARGS)

##@ data
look: $(VENV)/.ready $(if $(SOURCE),,$(DRAWN))  ## a page about SOURCE: images, groups, ledger, Table 1
	$(BIN)/skinvl look $(or $(SOURCE),$(OUT)) $(ARGS)

##@ plan
plan: $(VENV)/.ready  ## memory and hours of RECIPE on BASE, with GPU and GPUS
	$(BIN)/skinvl plan $(RECIPE) $(if $(BASE),base=$(BASE)) $(if $(GPU),--gpu $(GPU)) --gpus $(GPUS) $(ARGS)

show: $(VENV)/.ready $(DRAWN)  ## paint what is trained in a few conversations of RECIPE
	$(BIN)/skinvl show $(RECIPE) $(OVERRIDES)

##@ train
sft: $(VENV)/.ready $(DRAWN)  ## train: RECIPE, BASE, RUN, GPUS, NNODES, DEEPSPEED
	$(LAUNCH) sft $(strip $(RECIPE) $(OVERRIDES))

pretrain: $(VENV)/.ready $(DRAWN)  ## train two towers: RECIPE, BASE, RUN, GPUS, NNODES
	$(LAUNCH) pretrain $(strip $(RECIPE) $(OVERRIDES))

dry-run: $(VENV)/.ready  ## what RECIPE would train on BASE, without its weights
	$(BIN)/skinvl $(if $(shell grep -ls '^objective:' recipes/$(RECIPE).yaml $(RECIPE)),pretrain,sft) $(strip $(RECIPE) $(OVERRIDES)) --dry-run

cache: $(VENV)/.ready  ## compute the vision features of RECIPE's images ahead
	$(LAUNCH) cache $(strip $(RECIPE) $(OVERRIDES))

##@ evaluate
eval: $(VENV)/.ready  ## evaluate, score, report: RUN or RECIPE, AGAINST
	$(LAUNCH) eval $(strip $(or $(RUN),$(RECIPE)) $(if $(RUN),,$(if $(BASE),base=$(BASE))) $(if $(AGAINST),--against $(AGAINST)) $(ARGS))

##@ release
merge: $(VENV)/.ready  ## merge the adapter of RUN into its base, and check
	$(BIN)/skinvl merge $(RUN) $(ARGS)

publish: $(VENV)/.ready  ## card and files of RUN, to REPO (ARGS=--dry-run: not)
	$(BIN)/skinvl publish $(RUN) $(REPO) $(ARGS)

##@ serve
ask: $(VENV)/.ready  ## ask RUN about IMAGE in the terminal: QUESTION, or many
	$(BIN)/skinvl ask $(RUN) $(IMAGE) $(if $(QUESTION),"$(QUESTION)") $(ARGS)

demo: $(VENV)/.ready-demo  ## open a page on which RUN is asked, beside its base
	$(BIN)/skinvl demo $(RUN) $(ARGS)

serve: $(VENV)/.ready-serve  ## serve RUN by the OpenAI-compatible API, checked first
	$(BIN)/skinvl serve $(RUN) $(ARGS)

##@ project
setup: $(VENV)/.ready  ## install what training and evaluation need into .venv

check: $(VENV)/.ready-dev  ## ruff, mypy --strict and the layer test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

test: $(VENV)/.ready-dev  ## the tests, at most 10 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu" $(TESTS)

browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
		root=$$(test $$(id -u) = 0 || echo sudo); \
		$$root apt-get update -qq && $$root apt-get install -y -qq --no-install-recommends chromium chromium-driver; }

test-slow: $(VENV)/.ready-dev browser  ## the rest: distributed runs, whole trainings
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not alone and not gpu" $(TESTS) || test $$? = 5
	$(BIN)/python -m pytest -m "slow and alone and not gpu" $(TESTS) || test $$? = 5

gpu: $(VENV)/.ready-dev  ## the gpu tests, then a table of speed and memory, 9 minutes
	$(BIN)/python -m pytest -m gpu $(TESTS)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench: $(VENV)/.ready-dev  ## the speed claims, each beside its alternative
	$(BIN)/python benchmarks/prep.py
	$(BIN)/python benchmarks/hashes.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/classify.py
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/synth.py
	$(BIN)/python benchmarks/towers.py
	$(BIN)/python benchmarks/concepts.py
	$(BIN)/python benchmarks/peers.py

clean:  ## remove what was made here, data and runs excepted
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache bases cache
