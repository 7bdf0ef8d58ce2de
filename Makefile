# Short names for what the repository does. `make` lists them. Stages are described in dvc.yaml, which never
# calls make; every target that needs the environment makes it first (`setup`, milliseconds when nothing changed).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# DVC keeps pickles in its site cache, and its default place is writable by every user of the machine.
export DVC_SITE_CACHE_DIR := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nano3-sft/dvc
unexport PYTHONPATH PYTHONHOME          # the environment is .venv, which knows src/
unexport PYTHONDONTWRITEBYTECODE        # without .pyc files every call of dvc takes twice as long

PORT ?= 5000
SHELL_SCRIPTS = $$(git ls-files --cached --others --exclude-standard '*.sh' '*.sbatch' .ci/run)

# How stages are run: SAMPLE and FORCE work for repro and for every stage.
REPRO = $(if $(SAMPLE),dvc exp run --set-param filter.sample=$(SAMPLE),dvc repro)$(if $(FORCE), --force)
# $(call option,VARIABLE,name): the option, with a blank before it, where the variable is given.
option = $(if $($(1)), --$(2) '$($(1))')

# DVC writes dvc.lock when the last stage has ended: MLflow is given it then.
tell_lock = $(if $(filter-out 0,$(DETACH) $(DRY_RUN)),,@python -m sft.tracking.cli --lock)

# Where prep, train and eval are done: CLUSTER=<profile> lets Slurm do them (slurm/README.md).
export CLUSTER DETACH DRY_RUN

# $(call stages,TARGETS): refuse what cannot be done, run, say how to get back.
define stages
$(if $(SAMPLE),@[[ "$(SAMPLE)" =~ ^[1-9][0-9]*$$ ]] || { echo "$(no_sample)" >&2; exit 2; })
$(if $(CLUSTER),@[[ -e slurm/clusters/$(CLUSTER).yaml ]] || { echo "$(no_profile)" >&2; exit 2; })
$(if $(filter-out 0,$(DETACH) $(DRY_RUN)),@echo "$(no_job)" >&2; exit 2)
$(REPRO)$(if $(1), $(1))
$(if $(SAMPLE),@echo "params.yaml now takes $(SAMPLE) rows per source. Back to all of them: git checkout params.yaml")
endef

# $(call job,STAGE,WHAT IT NEEDS,PROGRAM): the same for a stage that a cluster can do. DRY_RUN=1 shows the job, DETACH=1
# submits it or says how it is; the program ends with 3 when it is time for DVC to collect what the job made.
define job
$(if $(and $(CLUSTER),$(filter-out 0,$(DRY_RUN))),python -m $(3),\
$(if $(and $(CLUSTER),$(filter-out 0,$(DETACH))),\
    $(REPRO) $(2) && { python -m $(3) || { status=$$?; [[ $$status == 3 ]] || exit $$status; $(REPRO) $(1); }; },\
    $(call stages,$(1))))
endef

no_sample = error: SAMPLE=$(SAMPLE): expected a positive number of rows per source, as in SAMPLE=50
no_profile = error: CLUSTER=$(CLUSTER): no profile slurm/clusters/$(CLUSTER).yaml. Profiles here: \
    $(or $(basename $(notdir $(wildcard slurm/clusters/*.yaml))),none). Without CLUSTER the work is done on this machine.
no_job = error: DETACH and DRY_RUN are about one job: make prep, train or eval, with CLUSTER=<profile>

.PHONY: help setup repro fetch filter prep pack train eval profile estimate show rejected lineage reproduce compare export \
    mlflow mlflow-server sweep push deliver clean status logs cancel slurm-up slurm-down test check format pins \
    bench bench-peers

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
	    /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	    /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

##@ The pipeline (SAMPLE=50: only so many rows per source; FORCE=1: also what has not changed)
repro: setup ## Run every stage whose inputs changed
	$(call stages,)
	$(tell_lock)

fetch: setup ## Download sources and base model, up to here
	$(call stages,fetch fetch-model fetch-benchmarks)

filter: setup ## Normalise and filter conversations, up to here
	$(call stages,filter)

prep: setup ## Apply the chat template, tokenise, mask, up to here
	$(call job,prep,filter fetch-model,sft.cluster.remote_stage prep)

pack: setup ## Split, blend and pack, up to here
	$(call stages,pack)

train: setup ## Train, up to here
	$(call job,train,pack fetch-model,sft.stages.train)

eval: setup ## Measure before and after, up to here
	$(call job,eval,train,sft.cluster.remote_stage eval)
	$(tell_lock)

profile: setup ## A full param set of profiles/ becomes params.yaml (NAME=nemotron3-nano; without, list them)
	python -m sft.experiments.profile$(call option,NAME,name)

estimate: setup ## What a training needs and what stands against it (PROFILE= NODES=1 GPUS=8 GPU=H100, or CLUSTER=)
	python -m sft.planning.preflight$(call option,PROFILE,profile)$(call option,NODES,nodes)$(call option,GPUS,gpus)$(call option,GPU,gpu)$(call option,CLUSTER,cluster)

##@ Results
show: setup ## Table of experiments; with SAMPLE=3 (or validation:3, or an id) a pack as trained (HTML=page.html)
	$(if $(SAMPLE),$(show_pack),$(show_experiments))
show_pack = python -m sft.inspect.sample$(call option,SAMPLE,sample)$(call option,HTML,html)
show_experiments = dvc exp show --only-changed --no-pager \
    --drop '^(data|models|src|requirements|templates|filters|reports)/'

rejected: setup ## What was refused and why (SOURCE= REASON= NUMBER=5 FROM=0)
	python -m sft.inspect.rejected$(call option,SOURCE,source)$(call option,REASON,reason)$(call option,NUMBER,number)$(call option,FROM,from)

lineage: setup ## From a model back to its data (MODEL=models/final, nano3-sft/1 or a run id; HTML= JSON= CARD= CACHE=1)
	python -m sft.lineage.chain$(call option,MODEL,model)$(call option,HTML,html)$(call option,JSON,json)$(call option,CARD,card)$(if $(CACHE), --cache)

reproduce: setup ## Build a model again from its commit and data, and compare stage by stage (MODEL= UNTIL= DATA=)
	python -m sft.lineage.reproduce$(call option,MODEL,model)$(call option,UNTIL,until)$(call option,DATA,data)

compare: setup ## Two runs side by side: params, data, code, metrics, curves, answers (A= B= HTML=)
	python -m sft.lineage.compare --a '$(A)' --b '$(B)'$(call option,HTML,html)

export: setup ## A checkpoint of a run as a Hugging Face folder (RUN=lineage key STEP=50 TO=models/...)
	python -m sft.training.export --run '$(RUN)'$(call option,STEP,step)$(call option,TO,to)

mlflow: setup ## Runs and registered models in the browser (PORT=5000)
	python -m sft.tracking.server --port $(PORT)

mlflow-server: setup ## A tracking server for several projects (STORE=postgresql://... ARTIFACTS=s3://... PORT= FOLDER=)
	python -m sft.tracking.server --port $(PORT)$(call option,STORE,store)$(call option,ARTIFACTS,artifacts)$(call option,FOLDER,folder)

sweep: setup ## Many experiments: GRID='optimizer.lr=1e-5,2e-5 rng.seed=1,2' or LIST=file (JOBS=1 CLUSTER= NAME= HTML=)
	python -m sft.experiments.sweep$(call option,GRID,grid)$(call option,LIST,list)$(call option,JOBS,jobs)$(call option,NAME,name) --html '$(or $(HTML),reports/sweep.html)'

push: setup ## Push data, models and finished stages, so that others need not run them (REMOTE=)
	python -m sft.lineage.dvc_push$(call option,REMOTE,remote)

deliver: setup ## Tell MLflow what waits for it: after a server was away, or another store is named
	python -m sft.tracking.cli

clean: ## Remove what the pipeline made in data/, models/ and runs/; DVC's cache stays
	git clean -fdX -- data models runs

##@ Clusters (prep, train and eval take CLUSTER=<profile>, and DETACH=1 or DRY_RUN=1: slurm/README.md)
status: setup ## Runs on a cluster and what became of them (CLUSTER=)
	python -m sft.cluster.cli status --cluster '$(CLUSTER)'

logs: setup ## Follow the newest job's log (CLUSTER= RUN=)
	python -m sft.cluster.cli logs --cluster '$(CLUSTER)'$(call option,RUN,run)

cancel: setup ## Cancel the living job (CLUSTER= RUN=)
	python -m sft.cluster.cli cancel --cluster '$(CLUSTER)'$(call option,RUN,run)

slurm-up: ## Start a Slurm of two nodes on this machine, for CLUSTER=loopback
	slurm/loopback.sh up

slurm-down: ## End it
	slurm/loopback.sh down

##@ The repository
setup: ## Make or complete .venv from the pinned requirements
	@install -d -m 700 "$(DVC_SITE_CACHE_DIR)"
	@requirements/setup.sh

test: setup ## Run the tests
	pytest

check: setup ## Everything that must hold before a commit: format, lint, types, scripts, tests
	ruff format --check
	ruff check
	mypy
	shellcheck $(SHELL_SCRIPTS)
	pytest

format: setup ## Format, and fix what can be fixed
	ruff format
	ruff check --fix

BENCH ?= $(foreach name,scaling prep pack filters,$(if $(wildcard bench/$(name).py),$(name)))
bench: setup ## Measure the stages, and peers on the same data (BENCH=prep NVIDIA=a checkout of their repository)
	for name in $(BENCH); do echo; PYTHONPATH=src:. python -m bench.$$name; done

bench-peers: setup ## Install what is measured against and not used: TRL, beside what it shares with .venv
	uv pip install --quiet --no-deps --target runs/bench/peers trl==1.16.0

COMPILE = uv pip compile --quiet --python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-header \
    --no-annotate --no-emit-index-url --config-file requirements/bridge.toml $(if $(UPGRADE),--upgrade)
PINS = data train tools dev
pins: setup ## Compile requirements/*.in to pins (UPGRADE=1: to the newest releases)
	all="$$(mktemp)"; trap 'rm -f "$$all"' EXIT; cat $(PINS:%=requirements/%.txt) >"$$all"; \
	$(COMPILE) $(PINS:%=requirements/%.in) --output-file "$$all" >/dev/null; \
	earlier=(); for name in $(PINS); do \
	    earlier+=("requirements/$$name.in"); part="$$(mktemp)"; \
	    $(COMPILE) "$${earlier[@]}" --constraint "$$all" --output-file "$$part" >/dev/null; \
	    others=(); for other in $(PINS); do [[ $$other == "$$name" ]] && break; others+=("requirements/$$other.txt"); done; \
	    cat /dev/null "$${others[@]}" | grep -vxFf - "$$part" >"requirements/$$name.txt"; rm "$$part"; \
	done
