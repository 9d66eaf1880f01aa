# `make sweep` and `make test` install everything they need on first use; `make help` lists all targets.
PYTHON ?= python3
# Additional arguments of the command, e.g. make sweep ARGS="--dataset datasets/nw-ucla --values 5,15"
ARGS ?=
# The downloaded clips of NW-UCLA, for make reference.
ZIP ?= all_sqe.zip

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
REFERENCE = --dataset datasets/nw-ucla --preset best --refit --refit-seeds 3 $(ARGS)
WHAT := -c constraints.txt -e '.[test,dev]'

.PHONY: help setup sweep reference test test-all coverage check format docs docs-samples ui server clean
.DEFAULT_GOAL := help

help:
	@echo "make sweep     set up, then the K sweep on generated motion, tracked in MLflow (ARGS=… adds options)"
	@echo "make reference train the four modalities on NW-UCLA and write docs/reproduction/nw-ucla.md: hours; resumes"
	@echo "               (ZIP=all_sqe.zip: the downloaded clips; ARGS=… adds options of sweeps/modalities.py)"
	@echo "make test      set up, then the tests;  make test-all: also the slow ones"
	@echo "make coverage  the quick tests with the share of executed code, which must not fall"
	@echo "make check     lint, format and types (ruff, mypy);  make format: format the code"
	@echo "make docs      build the documentation into site/;  make docs-samples: run the examples of README and docs/"
	@echo "               on generated motion, and put their output and pictures into the documents"
	@echo "make ui        MLflow UI on http://127.0.0.1:5000, or on the next free port (PORT=… chooses another)"
	@echo "make server    tracking server for a team, on PostgreSQL with a password (mlflow/README.md)"
	@echo "make setup     only the virtual environment in $(VENV)"
	@echo "make clean     remove $(VENV) and caches (never data sets, checkpoints or runs)"

setup: $(STAMP)

# uv installs in seconds what takes pip minutes, but ignores pip's settings, so pip's local wheels are passed explicitly.
# Bytecode is compiled during installation: where Python cannot write it later, each process would spend seconds compiling
# PyTorch and MLflow. Without an NVIDIA GPU, uv installs PyTorch's CPU build, which saves gigabytes. If uv fails, pip
# installs everything.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fgst needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@$(BIN)/python -c pass 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV) (about a minute, or several minutes without cached packages)"
	@links="$${PIP_FIND_LINKS:-$$($(BIN)/pip config get global.find-links 2>/dev/null)}"; \
	torch="--torch-backend=cpu"; \
	if [ -n "$$links" ] || command -v nvidia-smi >/dev/null 2>&1; then torch=""; fi; \
	uv="$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python"; \
	{ $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv && \
		$$uv $$torch $${links:+--find-links "$$links"} $(WHAT); } || \
	{ echo "uv failed; installing with pip, which takes minutes"; $(BIN)/pip install $(WHAT); }
	@touch $@

sweep: $(STAMP)
	@$(BIN)/python sweeps/focal_k.py $(ARGS)

# The same command continues after an interruption: with --resume auto, a sweep with the same settings is resumed.
reference: $(STAMP)
	@test -d datasets/nw-ucla || $(BIN)/python -m data_prep.nw_ucla $(ZIP) datasets/nw-ucla
	@$(BIN)/python sweeps/modalities.py $(REFERENCE) --resume auto
	@$(BIN)/python -m benchmarks.reference $(REFERENCE)

# The quick tests run on up to four processes; the tests of a file share fixtures, so they stay on one. The slow tests
# start clusters and servers, so they run one at a time; exit code 5 of pytest means that ARGS selected none of them.
test: $(STAMP)
	@$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-all: test
	@$(BIN)/python -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]

# Fails if the quick tests execute less of the code than they did when this number was set.
coverage: $(STAMP)
	@$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow" $(PARALLEL) --cov --cov-report=term --cov-fail-under=93 $(ARGS)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# First regenerates the reference pages. --strict turns broken links and anchors into errors (but not with --quiet).
docs: $(STAMP)
	@$(BIN)/python -c 'import material, mkdocs, mkdocstrings' 2>/dev/null || \
		$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@$(BIN)/python tools/generate_docs.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html"

# Runs stay in samples/; remove it to begin again.
docs-samples: $(STAMP)
	@$(BIN)/python tools/generate_samples.py $(ARGS)

# Shows the tracking store of the working directory, or the one named by the environment, on this machine only.
ui: $(STAMP)
	@case "$${MLFLOW_TRACKING_URI:-}" in http://*|https://*) \
		echo "MLflow UI on the tracking server: $$MLFLOW_TRACKING_URI"; exit 0;; esac; \
	port=$$($(BIN)/python tools/free_port.py $${PORT:-}) || exit 1; \
	echo "MLflow UI on http://127.0.0.1:$$port (press Ctrl-C to stop it)"; \
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --host 127.0.0.1 \
		--port $$port --workers 1 --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}"

# Stores its data in server/; ARGS passes further arguments.
server: $(STAMP)
	@$(BIN)/python -m fgst.server $(ARGS)

clean:
	rm -rf $(VENV) .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis build site *.egg-info
	find . -name __pycache__ -type d -not -path './datasets/*' -prune -exec rm -rf {} +
