# What a developer types. `make test` needs nothing but Python 3.11 or later: it makes its own
# environment, and on Debian fetches the few programs that the tests call.

PYTHON ?= python3
SECONDS ?=
PLOTS ?=
CACHE := $(or $(JOULEMETER_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/joulemeter)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Programs that .ci/tools fetched; the system's own come first.
export PATH := $(PATH):$(CACHE)/tools/usr/bin
export JOULEMETER_CACHE := $(CACHE)
# Make exports what is given on its command line. To bash, SECONDS is the shell's own clock.
unexport SECONDS

.PHONY: help install hooks tools vllm vllm-versions check test test-vllm lint fmt dashboards pictures preview bench accuracy demo demo-vllm clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo [SECONDS=20]       the meter on a simulated GPU, with traffic'
	@echo 'make demo-vllm [SECONDS=60]  the same on a real vLLM, on this CPU'
	@echo 'make check                   lint, types and the fast tests: before each commit'
	@echo 'make test                    lint, types and all tests, the real vLLM included'
	@echo 'make test-vllm               the same on other versions and layouts of vLLM, its meter killed'
	@echo 'make install                 the development environment, in $(VENV)'
	@echo 'make lint | fmt              check | mend style'
	@echo 'make hooks                   ruff and mypy before each commit, by pre-commit'
	@echo 'make dashboards              write grafana/dashboards/ anew'
	@echo 'make pictures                all pictures of the README anew, from runs of the demo'
	@echo 'make preview [SECONDS=120]   every board drawn by Grafana'"'"'s components, in grafana/pictures/'
	@echo 'make bench                   what the plugin costs per engine step, and the core at scale'
	@echo 'make accuracy [PLOTS=DIR]    receipts against the truth of synthetic engines, in a table'

install: $(VENV)/.dev

# What users get, nothing more: the demo starts sooner.
$(VENV)/.base: pyproject.toml
	@PYTHON='$(PYTHON)' .ci/environment $(VENV)
	$(PIP) install --editable .
	@touch $@

# The development extras hold the base, so one install serves both.
$(VENV)/.dev: pyproject.toml
	@PYTHON='$(PYTHON)' .ci/environment $(VENV)
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.base

# ruff and mypy before each commit.
hooks: install
	$(BIN)/pre-commit install

# What the tests call besides Python. Prometheus goes to the cache, the others are installed.
tools:
	.ci/tools '$(CACHE)/tools' prometheus promtool gcc chromium unshare

# A real vLLM for this CPU and a small model, some 4 GB, once.
vllm:
	tests/vllm_cpu/setup.sh

# Files are the unit: tests in one share what is costly to start. PYTEST takes further options.
PARALLEL := -n 4 --dist loadfile
PYTEST ?=

check: install lint tools
	$(BIN)/python -m pytest $(PARALLEL) -m 'not vllm and not slow' $(PYTEST)

# The real vLLM by itself: beside other tests it shows what a busy machine does to it, and no more.
test: install lint tools vllm
	$(BIN)/python -m pytest $(PARALLEL) -m 'not vllm' $(PYTEST)
	$(BIN)/python -m pytest -m vllm $(PYTEST)

# The oldest version that is supported, a middle one and the newest with a CPU build; the others by
# their sources.
VLLM_VERSIONS ?= 0.20.0 0.26.0 0.32.0

vllm-versions: install
	for version in $(VLLM_VERSIONS); do tests/vllm_cpu/setup.sh $$version || exit 1; done
	$(BIN)/python -m tests.versions.sources

test-vllm: vllm-versions tools
	$(BIN)/python -m pytest tests/versions/check_contracts.py
	for version in $(VLLM_VERSIONS); do \
	    VLLM_VERSION=$$version $(BIN)/python -m pytest tests/work/test_vllm_scheduler.py || exit 1; \
	done
	VLLM_VERSIONS='$(VLLM_VERSIONS)' $(BIN)/python -m pytest -s tests/versions/check_versions.py
	$(BIN)/python -m pytest tests/versions/check_starts.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --package meter --package grafana

fmt: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dashboards: install
	$(BIN)/python -m grafana

pictures: preview
	.ci/tools '$(CACHE)/tools' gcc chromium
	$(BIN)/python -m tests.pictures

# Of a run of the demo. Of a made-up week: python -m tests.grafana.preview DIRECTORY --week
preview: install
	.ci/tools '$(CACHE)/tools' prometheus promtool gcc chromium npm
	$(BIN)/python -m tests.grafana.preview grafana/pictures $(if $(SECONDS),--seconds $(SECONDS))

bench: install
	tests/vllm_cpu/setup.sh
	$(BIN)/python tests/bench/plugin_cost.py
	$(BIN)/python tests/bench/core_scale.py --only scale --only batch --only replay

accuracy: install
	$(BIN)/python -m tests.truth $(if $(PLOTS),--plots '$(PLOTS)')

demo: $(VENV)/.base
	$(BIN)/joulemeter demo $(if $(SECONDS),--seconds $(SECONDS))

demo-vllm: $(VENV)/.base
	tests/vllm_cpu/setup.sh
	$(BIN)/joulemeter demo --vllm $(if $(SECONDS),--seconds $(SECONDS))

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
