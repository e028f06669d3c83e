# LAD, from a bare clone: every target first makes sure that .venv exists. `make help` lists them.
#
#   PYTHON       the Python that .venv is made with (3.11 to 3.13; 3.11 is what the lock was made on)
#   LAD_PROFILE  fast or full, for `make report`
#   LAD_CACHE    where weights are kept

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help env fetch report test check twins lab demo figures sync lock clean

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& { echo "$$p"; break; }; done)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.lad-installed
NOTEBOOK_TIMEOUT ?= 300

# No check for a newer pip; no warning of ipykernel's debugger in every kernel.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1

help:  ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

env: $(STAMP)  ## .venv with the exact versions of requirements.lock
	@echo "[env] $(VENV) is ready: $$($(PY) --version)"

# Once installed, no network is needed: the lock is satisfied, and the package is built by the
# setuptools that the lock installed.
$(STAMP): requirements.lock pyproject.toml
	@test -x $(PY) || test -n "$(PYTHON)" || { \
		echo "[env] no Python 3.11 to 3.13 found: install one, or name it (make PYTHON=...)" >&2; exit 1; }
	@test -x $(PY) || { echo "[env] making $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "[env] installing $$(grep -c == requirements.lock) pinned packages (the first time: a minute" \
		"or two and, unless cached, a download of some hundred MB, more if torch brings CUDA)"
	@began=$$SECONDS; \
		$(PY) -m pip install -qq --requirement requirements.lock; \
		$(PY) -m pip install -qq --no-deps --no-build-isolation --editable .; \
		echo "[env] installed in $$((SECONDS - began)) s"
	@touch $@

fetch: $(STAMP)  ## the default model's weights into the cache (93 MB, once)
	@$(PY) -m lad fetch

report: fetch  ## every notebook executed, as pages: build/report/index.html
	@$(PY) -m lad.report

test: fetch check twins  ## linter, twins, unit tests, notebooks in the fast profile
	@echo "[test] unit tests"
	@LAD_PROFILE=fast $(PY) -m pytest --numprocesses 2 --dist loadfile
	@echo "[test] notebooks, fast profile"
	@rm -rf build/test && mkdir -p build/test/notebooks build/test/figures
	@cp notebooks/*.ipynb build/test/notebooks
	@LAD_PROFILE=fast LAD_FIGURES=$(CURDIR)/build/test/figures $(PY) -m pytest -p no:cacheprovider \
		--nbmake --nbmake-timeout=$(NOTEBOOK_TIMEOUT) --overwrite --durations=0 build/test/notebooks
	@$(PY) -m lad.report --check build/test/notebooks/*.ipynb

check: $(STAMP)  ## linter and formatter
	@echo "[check] ruff"
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --quiet --check . || { echo "[check] run: $(PY) -m ruff format ." >&2; exit 1; }

# Made in a copy and compared: the check changes no file.
twins: $(STAMP)  ## every .ipynb is what its .py says
	@echo "[twins] notebooks/*.ipynb against notebooks/*.py"
	@rm -rf build/twins && mkdir -p build/twins && cp notebooks/*.py notebooks/*.ipynb \
		notebooks/jupytext.toml build/twins
	@$(PY) -m jupytext --quiet --to ipynb --update build/twins/*.py
	@for made in build/twins/*.ipynb; do diff -u "notebooks/$${made##*/}" "$$made" || { \
		echo "[twins] notebooks/$${made##*/} differs from its .py: run 'make sync'" >&2; exit 1; }; done

lab: fetch  ## JupyterLab with the notebooks
	$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks $(LABFLAGS)

demo: fetch  ## the explorers as a web page: http://127.0.0.1:8866/
	@$(PY) -m lad demo $(DEMOFLAGS)

figures: $(STAMP)  ## figures/* drawn again from what is recorded in figures/data
	@$(PY) -m lad figures

sync: $(STAMP)  ## the .ipynb made again from the .py, without outputs
	@test -z "$(wildcard notebooks/*.ipynb)" || \
		$(PY) -m nbconvert --log-level WARN --clear-output --inplace $(wildcard notebooks/*.ipynb)
	@$(PY) -m jupytext --quiet --to ipynb --update notebooks/*.py
	@echo "[sync] $$(ls notebooks/*.ipynb | wc -l) notebooks made from their .py"

lock:  ## requirements.lock from what is installed in .venv (after upgrading something there)
	@$(PY) -m pip freeze --all --exclude-editable --exclude pip --exclude lad \
		| grep -viE '^(nvidia|cuda|triton)' | sed -E 's/\+[A-Za-z0-9.]+$$//' > requirements.lock.new
	@{ sed -n '/^#/p' requirements.lock; cat requirements.lock.new; } > requirements.lock.tmp
	@rm requirements.lock.new && mv requirements.lock.tmp requirements.lock
	@echo "[lock] requirements.lock names $$(grep -c == requirements.lock) packages"

clean:  ## everything made here, except the weights in the cache
	rm -rf build dist $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
	find lad tests notebooks -name __pycache__ -prune -exec rm -rf {} +
