# Commands of this repository; `make` lists them. Stages are defined in dvc.yaml, which never calls make.
# Targets that need the environment depend on `setup`, which takes milliseconds when nothing has changed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# HOME can be unset (cron, systemd), or a folder that you cannot write (a container with another uid).
export HOME := $(or $(HOME),$(shell unset HOME && echo ~))
# DVC keeps pickles in its site cache. The default folder is writable by every user of the machine: use a private one.
private := $(shell for folder in "$(XDG_CACHE_HOME)" "$(HOME)/.cache"; do [[ "$$folder" == /* ]] && \
    mkdir -p "$$folder" 2>/dev/null && [[ -w "$$folder" ]] && echo "$$folder" && exit; done; echo "$(CURDIR)/.dvc/tmp")
export DVC_SITE_CACHE_DIR := $(private)/nano3-sft/dvc
unexport PYTHONPATH PYTHONHOME          # the project is installed in .venv
unexport PYTHONDONTWRITEBYTECODE        # without .pyc files every dvc command takes twice as long

PORT ?= 5000
SHELL_SCRIPTS = $$(git ls-files --cached --others --exclude-standard '*.sh' '*.sbatch' .ci/run)

# $(call quote,TEXT): one word for the shell, whatever is in it.
quote = '$(subst ','\'',$(1))'

# What is typed is checked before anything runs: a target or a variable that is not in requirements/commands.txt is an error,
# unless it is a param (with a dot: optimizer.lr=1e-5).
typed := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
params := $(sort $(foreach name,$(typed),$(if $(findstring .,$(name)),$(name))))
# Earlier names. NAME= belongs to `make sweep`; WSL sets it to the name of the machine, so only the command line counts.
NAME :=
$(if $(SAMPLE),$(error SAMPLE=$(SAMPLE) has a new name. \
    $(if $(filter show,$(MAKECMDGOALS)),Run: make show PACK=$(SAMPLE),Rows per source: ROWS=$(SAMPLE))))
$(if $(and $(filter profile,$(MAKECMDGOALS)),$(NAME)),\
    $(error NAME=$(NAME) has a new name. Run: make profile PROFILE=$(NAME)))
$(if $(and $(filter sweep,$(MAKECMDGOALS)),$(HTML)),\
    $(error HTML=$(HTML): make sweep writes no page. See its experiments with: make show, make mlflow))
$(if $(and $(filter show,$(MAKECMDGOALS)),$(filter HTML,$(typed))),$(if $(PACK),,\
    $(error HTML=$(HTML): the page of a pack. Run: make show PACK=0 HTML=$(HTML))))
renamed := deliver:mlflow-sync SAMPLE:$(if $(filter show,$(MAKECMDGOALS)),PACK,ROWS)
mistyped := $(shell requirements/check_command.sh "$(renamed)" $(call quote,$(MAKECMDGOALS)) $(call quote,$(filter-out $(params),$(typed))))
$(if $(mistyped),$(error $(mistyped)))
# Switches: 1, or 0 for off.
SWITCHES := CACHE DETACH DRY_RUN FORCE THINKING UPGRADE WAIT YES
$(foreach name,$(filter $(SWITCHES),$(typed)),$(if $(filter-out 0 1,$($(name))),$(error $(name)=$($(name)): expected $(name)=1 or $(name)=0)))
$(foreach name,$(SWITCHES),$(if $(filter 0,$($(name))),$(eval override $(name) :=)))
# JSON=1: one JSON document on stdout, and no recipes there.
facts := show estimate plan check-data rejected judge-agreement blame curve lineage reproduce compare status
json = $(if $(filter-out 0,$(JSON)), --json)
ifneq ($(json),)
$(if $(filter-out 1,$(JSON)),$(error JSON=$(JSON): expected JSON=1. To write a file: make $(MAKECMDGOALS) JSON=1 >$(JSON)))
$(if $(filter-out 1,$(words $(MAKECMDGOALS)))$(filter-out $(facts),$(MAKECMDGOALS)),\
    $(error JSON=1: for one of: $(facts), not: $(or $(MAKECMDGOALS),help)))
MAKEFLAGS += --silent
endif
$(if $(params),$(if $(filter-out repro fetch filter prep pack train eval sweep,$(or $(MAKECMDGOALS),help)),\
    $(error $(firstword $(params))=: only repro, sweep and the stages take params, not: $(or $(MAKECMDGOALS),help))))

# $(call option,VARIABLE,name): ` --name 'value'` if the variable is set.
option = $(if $($(1)), --$(2) $(call quote,$($(1))))

# How stages run: params (optimizer.lr=1e-5), ROWS and FORCE work for repro and for every stage.
settings = $(strip $(if $(ROWS),--set $(call quote,filter.max_rows=$(ROWS))) \
    $(foreach name,$(params),--set $(call quote,$(name)=$(value $(name)))))
REPRO = $(if $(settings),python -m sft.experiments.run $(settings),dvc repro)$(if $(FORCE), --force)
# What would stop the stages later is refused first, before DVC removes an output; sft.experiments.run does it itself.
CHECK = $(if $(settings),,python -m sft.experiments.check$(if $(1), $(1)))

# DVC writes dvc.lock after the last stage: log it to MLflow then.
log_lock = $(if $(strip $(DETACH) $(DRY_RUN)),,@python -m sft.tracking.cli sync --lock)

# Where prep, train and eval run: CLUSTER=<name> sends them to Slurm (slurm/README.md).
export CLUSTER DETACH DRY_RUN WAIT

# $(call stages,TARGETS): check the variables, then run; without targets all, for which DVC parses dvc.lock once, not twice.
define stages
@[[ -w . ]] || { echo "error: $(CURDIR): you cannot write here. Copy the project to run it." >&2; exit 2; }
$(if $(ROWS),@[[ $(call quote,$(ROWS)) =~ ^[1-9][0-9]*$$ ]] || { echo $(call quote,$(bad_rows)) >&2; exit 2; })
$(if $(CLUSTER),@[[ -e $(call quote,slurm/clusters/$(CLUSTER).yaml) ]] || { echo $(call quote,$(no_cluster_file)) >&2; exit 2; })
$(if $(strip $(DETACH) $(DRY_RUN)),@echo "$(no_job)" >&2; exit 2)
$(CHECK)
$(REPRO)$(or $(if $(1), $(1)),$(if $(settings),, --all-pipelines))
endef

# $(call job,STAGE,STAGES BEFORE IT,PROGRAM): the same for a stage that a cluster can run. DRY_RUN=1 shows the job.
# DETACH=1 submits it or reports its state; the program exits with 3 when DVC can collect the outputs.
define job
$(if $(and $(CLUSTER),$(DRY_RUN)),python -m $(3),\
$(if $(and $(CLUSTER),$(DETACH)),\
    $(CHECK)$(if $(settings),, &&) $(REPRO) $(2) && { python -m $(3) || { status=$$?; [[ $$status == 3 ]] || exit $$status; $(REPRO) $(1); }; },\
    $(call stages,$(1))))
endef

bad_rows = error: ROWS=$(ROWS): expected a positive number of rows per source, for example ROWS=50
no_cluster_file = error: CLUSTER=$(CLUSTER): slurm/clusters/$(CLUSTER).yaml not found. Cluster files: \
    $(or $(basename $(notdir $(wildcard slurm/clusters/*.yaml))),none). Without CLUSTER the stage runs on this machine.
no_job = error: DETACH and DRY_RUN need one job: make prep, make train or make eval, with CLUSTER=<name>

.NOTPARALLEL:
.PHONY: help setup repro fetch filter prep pack train eval profile pin estimate plan rehearse show check-data rejected judge-agreement blame curve chat \
    lineage reproduce compare export publish mlflow mlflow-server mlflow-sync sweep push clean status logs cancel slurm-up slurm-down \
    setup-lm-eval test test-layouts drill fuzz lint check format \
    pins bench bench-peers

help: ## List the targets; show the last run, what is up to date and what reruns
	@awk 'BEGIN { FS = ":.*## " } \
	    /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	    /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@if [[ -e .venv/.pins ]]; then install -d -m 700 "$(DVC_SITE_CACHE_DIR)"; python -m sft.experiments.overview; \
	    else printf '\n%s\n' "Not set up yet: the first target does it. Then make shows here what is up to date."; fi

##@ The pipeline (optimizer.lr=1e-5: set a param; ROWS=50: only 50 rows per source; FORCE=1: rerun what has not changed too)
repro: setup ## Run every stage whose inputs changed
	$(call stages,)
	$(log_lock)

fetch: setup ## Download the sources and the base model
	$(call stages,fetch fetch-model fetch-benchmarks)

filter: setup ## Run the pipeline up to filter: normalize and filter conversations
	$(call stages,filter)

prep: setup ## ... up to prep: chat template, token ids, loss mask
	$(call job,prep,filter fetch-model,sft.cluster.remote_stage prep)

pack: setup ## ... up to pack: split, blend and pack
	$(call stages,pack)

train: setup ## ... up to train: train and export models/final
	$(call job,train,pack fetch-model,sft.stages.train)

eval: setup ## ... up to eval: evaluate the base model and the trained model
	$(call job,eval,train,sft.cluster.remote_stage eval)
	$(log_lock)

profile: setup ## Copy a profile to params.yaml (PROFILE=nemotron3-nano; without it: list the profiles)
	python -m sft.experiments.profile$(call option,PROFILE,profile)

pin: setup ## Write commit, bytes and license of each source, as the Hugging Face hub states them (PROFILE=)
	python -m sft.experiments.pin$(call option,PROFILE,profile)

estimate: setup ## Estimate memory, disk and time, and check the params (PROFILE= NODES=1 GPUS=8 GPU=H100, or CLUSTER=)
	python -m sft.planning.preflight$(call option,PROFILE,profile)$(call option,NODES,nodes)$(call option,GPUS,gpus)$(call option,GPU,gpu)$(call option,CLUSTER,cluster)$(json)

plan: setup ## Show tokens, packs, epochs and disk of a blend before its download, from range reads (PROFILE= PACK=8192)
	python -m sft.data_plan.plan$(call option,PROFILE,profile)$(call option,PACK,pack)$(json)

rehearse: setup ## Rehearse a profile with a tiny model: every stage, a kill and a resume, on a CPU (PROFILE= CLUSTER=)
	python -m sft.rehearse.cli$(call option,PROFILE,profile)$(call option,CLUSTER,cluster)

##@ Results (JSON=1: as JSON, also for estimate, plan and status)
show: setup ## List experiments; with PACK=3 (or validation:3, or an id): show a pack and its loss mask (HTML=page.html)
	$(if $(PACK),$(show_pack),$(show_experiments))
show_pack = python -m sft.inspect.sample$(call option,PACK,pack)$(call option,HTML,html)$(json)
show_experiments = dvc exp show $(or $(strip $(json)),--only-changed --no-pager \
    --drop '^(data|models|src|requirements|templates|filters|reports)/')

check-data: setup ## Show what would become of the first 1,000 rows of a source: rejected, not read, lengths, masks (SOURCE=)
	python -m sft.inspect.check_data --source $(call quote,$(SOURCE))$(json)

rejected: setup ## Show rejected rows with their reasons (SOURCE= REASON= NUMBER=5 FROM=0)
	python -m sft.inspect.rejected$(call option,SOURCE,source)$(call option,REASON,reason)$(call option,NUMBER,number)$(call option,FROM,from)$(json)

judge-agreement: setup ## Compare the judge with labels of people, by line of the rubric: kappa with intervals (LABELS=file.jsonl)
	python -m sft.inspect.judge_agreement --labels $(call quote,$(LABELS))$(json)

blame: setup ## Show the rows that the trained model predicts worst, by loss and by change, with their lines (SPLIT= ROWS= NUMBER=20)
	python -m sft.inspect.blame$(call option,SPLIT,split)$(call option,ROWS,rows)$(call option,NUMBER,number)$(json)

curve: setup ## Evaluate every kept checkpoint of a run: each metric by step (RUN=<lineage key>)
	python -m sft.inspect.curve$(call option,RUN,run)$(json)

chat: export CHAT_PROMPT = $(value PROMPT)
chat: setup ## Talk to a trained model, with tools (MODEL=models/final PROMPT='...' TOOLS=tools.json THINKING=1)
	@python -m sft.inspect.chat$(call option,MODEL,model)$(if $(value PROMPT), --prompt="$$CHAT_PROMPT")$(call option,TOOLS,tools)$(if $(THINKING), --thinking)

lineage: setup ## Trace a model back to its data (MODEL=models/final, nano3-sft/1 or a run id; HTML= CARD= CACHE=1)
	python -m sft.lineage.graph$(call option,MODEL,model)$(call option,HTML,html)$(call option,CARD,card)$(if $(CACHE), --cache)$(json)

reproduce: setup ## Build a model again from its commit and compare every output (MODEL= UNTIL=pack DATA=pull)
	python -m sft.lineage.reproduce$(call option,MODEL,model)$(call option,UNTIL,until)$(call option,DATA,data)$(json)

compare: setup ## Compare two runs: params, data, code, metrics, curves, answers (A= B= HTML=)
	python -m sft.lineage.compare --a $(call quote,$(A)) --b $(call quote,$(B))$(call option,HTML,html)$(json)

export: setup ## Export a checkpoint of a run as a Hugging Face folder (RUN=<lineage key> STEP=50 TO=models/...)
	python -m sft.training.export --run $(call quote,$(RUN))$(call option,STEP,step)$(call option,TO,to)

publish: setup ## Upload models/final with its card to the Hugging Face hub, after a list and a question (REPO= MODEL=models/... YES=1)
	@python -m sft.lineage.publish --repo $(call quote,$(REPO))$(call option,MODEL,model)$(if $(YES), --yes)

mlflow: setup ## Browse runs and registered models (PORT=5000)
	python -m sft.tracking.cli server --port $(call quote,$(PORT))

mlflow-server: setup ## Start a tracking server for several projects (STORE=postgresql://... ARTIFACTS=s3://... PORT= FOLDER=)
	python -m sft.tracking.cli server --port $(call quote,$(PORT))$(call option,STORE,store)$(call option,ARTIFACTS,artifacts)$(call option,FOLDER,folder)

grid = $(strip $(GRID) $(foreach name,$(params),$(name)=$(value $(name))))
sweep: setup ## Run many experiments: GRID='optimizer.lr=1e-5,2e-5 rng.seed=1,2' or LIST=file (JOBS=1 CLUSTER= NAME=)
	python -m sft.experiments.sweep$(call option,grid,grid)$(call option,LIST,list)$(call option,JOBS,jobs)$(call option,NAME,name)

push: setup ## Push data, models and finished stages to the DVC remote (REMOTE=)
	python -m sft.lineage.dvc_push$(call option,REMOTE,remote)

mlflow-sync: setup ## Send MLflow what it has not received: after an outage, or for another store
	python -m sft.tracking.cli sync

clean: setup ## Remove the outputs of the pipeline and runs/, after a question (YES=1: without); the DVC cache stays
	@python -m sft.experiments.clean$(if $(YES), --yes)

##@ Clusters (prep, train and eval take CLUSTER=<name>, and DETACH=1 or DRY_RUN=1: slurm/README.md)
status: setup ## List the runs on a cluster and their state (CLUSTER=)
	python -m sft.cluster.cli status --cluster $(call quote,$(CLUSTER))$(json)

logs: setup ## Follow the log of the newest job (CLUSTER= RUN=)
	python -m sft.cluster.cli logs --cluster $(call quote,$(CLUSTER))$(call option,RUN,run)

cancel: setup ## Cancel the running job (CLUSTER= RUN=)
	python -m sft.cluster.cli cancel --cluster $(call quote,$(CLUSTER))$(call option,RUN,run)

slurm-up: ## Start a two-node Slurm cluster on this machine, for CLUSTER=loopback
	slurm/loopback.sh up

slurm-down: ## Stop it
	slurm/loopback.sh down

##@ Development
setup: ## Create or update .venv from the pinned requirements (GPU=full: with packages for GPUs only, compiled here)
	@install -d -m 700 "$(DVC_SITE_CACHE_DIR)"
	@requirements/setup.sh $(if $(filter setup,$(MAKECMDGOALS)),$(call quote,$(GPU)))

setup-lm-eval: setup ## Install lm-eval, and download the data of the benchmarks in eval.tasks
	requirements/setup_beside.sh requirements/lm-eval.txt .lm-eval
	python -m sft.evaluation.tasks

test: setup ## Run the tests
	pytest

test-layouts: setup ## Train every tiny model in every layout, compare the losses with those of one process; rehearse; race
	pytest -m layouts -n 0 -s tests/training/test_layouts.py tests/rehearse tests/test_races.py tests/test_submission.py

drill: setup ## Kill data stages and a checkpoint save, or let them fail, at file operations; compare every byte (POINTS=20)
	PYTHONPATH=src:. python -m tests.drill.operations$(call option,POINTS,points)

fuzz: setup ## Draw damaged rows, schemas, templates, params and model folders; only a message may come out (MINUTES=5)
	PYTHONPATH=src:. python -m tests.drill.fuzz$(call option,MINUTES,minutes)

lint: setup ## Check format, lint, types and shell scripts
	ruff format --check
	ruff check
	mypy
	shellcheck $(SHELL_SCRIPTS)

check: lint test ## Run lint and test: do this before a commit

format: setup ## Format the code and apply automatic fixes
	ruff format
	ruff check --fix

BENCH ?= scaling filters
bench: setup ## Benchmark the stages and filters (BENCH=scaling)
	for name in $(BENCH); do echo; PYTHONPATH=src:. python -m bench.$$name; done

PEERS ?= prep packing
bench-peers: setup ## Compare with Hugging Face, Megatron-Bridge and TRL (PEERS=prep NVIDIA=<checkout of NVIDIA-NeMo/Nemotron>)
	uv pip install --quiet --no-deps --target runs/bench/peers trl==1.16.0
	for name in $(PEERS); do echo; PYTHONPATH=src:. python -m bench.peers.$$name; done

COMPILE = uv pip compile --quiet --python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-header \
    --no-annotate --no-emit-index-url --config-file requirements/bridge.toml $(if $(UPGRADE),--upgrade)
PINS = data train tools dev
pins: setup ## Compile requirements/*.in to pinned .txt files (UPGRADE=1: to the newest releases)
	all="$$(mktemp)"; trap 'rm -f "$$all"' EXIT; cat $(PINS:%=requirements/%.txt) >"$$all"; \
	$(COMPILE) $(PINS:%=requirements/%.in) --output-file "$$all" >/dev/null; \
	earlier=(); for name in $(PINS); do \
	    earlier+=("requirements/$$name.in"); part="$$(mktemp)"; \
	    $(COMPILE) "$${earlier[@]}" --constraint "$$all" --output-file "$$part" >/dev/null; \
	    others=(); for other in $(PINS); do [[ $$other == "$$name" ]] && break; others+=("requirements/$$other.txt"); done; \
	    cat /dev/null "$${others[@]}" | grep -vxFf - "$$part" >"requirements/$$name.txt"; rm "$$part"; \
	done; \
	$(COMPILE) requirements/gpu.in $(PINS:%=--constraint requirements/%.txt) --output-file "$$all" >/dev/null; \
	cat $(PINS:%=requirements/%.txt) | grep -vxFf - "$$all" >requirements/gpu.txt; \
	$(COMPILE) requirements/lm-eval.in $(PINS:%=--constraint requirements/%.txt) --output-file "$$all" >/dev/null; \
	cat $(PINS:%=requirements/%.txt) | grep -vxFf - "$$all" >requirements/lm-eval.txt
