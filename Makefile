# Everything a clone is asked for. The environments live in the cache ($TANDEM_CACHE or ~/.cache/tandem).
PYTHON ?= python3
TANDEM := .venv/bin/tandem
DEV = "$$($(PYTHON) -m cluster.setup --print dev)"

.PHONY: help setup setup-dev demo test test-fast test-all lint pre-commit bench-storage bench-train bench-memory bench-serve bench-placement pins check-pins clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup: ## Build the environments core, train and serve, and .venv (once; then in no time)
	@$(PYTHON) -m cluster.setup

setup-dev: ## Build those and the tools of the tests
	@$(PYTHON) -m cluster.setup core train serve dev

demo: setup ## Train, publish, serve and ask a small model; STORE=gs://bucket/prefix keeps it all there
	@$(TANDEM) demo $(if $(STORE),--store "$(STORE)")

test: setup-dev ## Set up, lint and pass every test: the fast ones first, then those with engines
	@$(MAKE) --no-print-directory lint test-fast
	@$(DEV) -m pytest -m "engine and not slow" --durations=10

test-fast: setup-dev ## The tests that need no engine
	@$(DEV) -m pytest -m "not engine" --timeout=120

test-all: test check-pins ## Every test, the slow ones too, and every pinned set resolved, the CUDA ones included
	@$(DEV) -m pytest -m slow --durations=10

lint: setup-dev ## Style, types and import directions
	@$(DEV) -m ruff check .
	@$(DEV) -m ruff format --check .
	@$(DEV) -m mypy
	@"$$(dirname $(DEV))/lint-imports"

pre-commit: setup-dev ## Run the linters before every commit
	@$(DEV) -m pre_commit install

bench-storage: setup-dev ## Transfers and the node cache against cp and raw clients, as ratios
	@$(DEV) benchmarks/storage.py

bench-train: setup-dev ## Training under Tandem against torchrun, as ratios
	@$(DEV) benchmarks/train.py

bench-memory: setup-dev ## Estimated against measured memory, of trainings and an engine
	@$(DEV) benchmarks/memory.py

bench-serve: setup-dev ## Serving under Tandem against vLLM's own server, as ratios
	@$(DEV) benchmarks/serve.py

bench-placement: setup-dev ## Placing 5,000 requests on 10,000 GPUs, in milliseconds a request
	@$(DEV) benchmarks/placement.py

pins: ## Compile cluster/pins/*.txt anew from the *.in files
	@$(PYTHON) -m cluster.setup --compile

check-pins: ## Resolve every pinned set
	@$(PYTHON) -m cluster.setup --check

clean: ## Remove what this clone can make again (not the cache, not the store)
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
