# The pipeline as file targets: interrupt anything, rerun, and only what is missing runs.

MODEL   ?= tests/tiny## hub id or folder of a chat model
METHODS ?= soft hard## method x or x-y is train_x.py, with FLAGS_x-y; ssot is the base model under another prompt
AXES    ?= numbers open mcq## what is measured
N       ?= 1000## draws per number prompt
SPLIT   ?= curated## prompts of NoveltyBench: curated or wildchat; a name of yours with FLAGS_novelty="--prompts FILE"
JUDGES  ?=## of NoveltyBench, other than its own: --classifier X --reward Y
override MODEL := $(patsubst %/,%,$(MODEL))
RUN     := runs/$(notdir $(MODEL))

ifdef PYTHON
  PY := $(PYTHON)
else
  PY   := .venv/bin/python
  VENV := .venv/installed
  BENCHMARKS := .venv/benchmarks
  TINYBENCHMARKS := .venv/tinyBenchmarks
  FIGURES := .venv/figures
endif

LAUNCH  ?= $(PY)## what starts training and sampling: ".venv/bin/accelerate launch" on several GPUs

ifeq ($(MODEL)$(filter sweep,$(MAKECMDGOALS)),tests/tiny)
  # The embedded model is small: two stages side by side on one thread each beat one stage on two, its best
  # learning rate is far above that of a large model, and many branches cost it little more than one.
  JOBS       ?= 2
  FLAGS      ?= --lr 5e-3
  FLAGS_soft ?= $(FLAGS) --branches 8
  FLAGS_hard ?= $(FLAGS) --branches 16
  # Its tokens are bytes: 160 are enough for its tagged answers, of which 1000 for each prompt would take hours.
  FLAGS_ssot ?= --max-tokens 160
  FLAGS_numbers_ssot ?= --n 50
  export OMP_NUM_THREADS ?= 1
  # glibc would give every large tensor back to the system and fetch it again, page by page.
  export MALLOC_MMAP_MAX_ ?= 0
  export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
else
  JOBS ?= 1
endif
# Soft's budget: as many steps of as many prompts, each with all its draws behind it.
FLAGS_hard-matched ?= $(FLAGS) --branches 16 --epochs 3
export TOKENIZERS_PARALLELISM ?= false
export PYTHONWARNINGS ?= ignore::FutureWarning
export TQDM_MININTERVAL ?= 5

DATA := runs/data
NOVELTY := $(RUN)/novelty-$(SPLIT)
TRAINED := $(filter-out ssot,$(METHODS))
# SSOT is a protocol for an answer, so there is none for a generated question.
ROWS := $(filter-out %/mcq/ssot.jsonl,$(foreach axis,$(AXES),$(patsubst %,$(RUN)/$(axis)/%.jsonl,base $(METHODS))))

MODELS ?= $(addprefix Qwen/Qwen3-,0.6B 1.7B 4B 8B 14B) $(addprefix google/gemma-3-,1b-it 4b-it 12b-it 27b-it) \
  $(addprefix meta-llama/Llama-3.2-,1B-Instruct 3B-Instruct) openai/gpt-oss-20b

.PHONY: help reproduce scores sweep rows own figures readme novelty retention merge test bench venv clean
.SECONDARY:
.DELETE_ON_ERROR:

help: ## this list
	@awk -F'## ' '/^[a-z]+:.*## /{sub(/:.*/, "", $$1); printf "make %-10s %s\n", $$1, $$2}' Makefile
	@awk -F'## ' '/^[A-Z]+ *\?=.*## /{split($$1, v, " *[?]= *"); printf "  %-8s %s (default: %s)\n", v[1], $$2, v[2]}' Makefile

reproduce: ## data, training, scores, table: the embedded model, or MODEL=Qwen/Qwen3-0.6B
	@$(MAKE) --no-print-directory -j$(JOBS) $(ROWS)
	@$(MAKE) --no-print-directory scores

scores: $(ROWS)
	@$(PY) metrics.py $^ --out $(RUN)/scores.jsonl --runs $(TRAINED:%=$(RUN)/%) --report $(RUN)/report.md

sweep: ## reproduce the paper's 12 models, or MODELS="a/b c/d"; one that fails is skipped, and named at the end
	@skipped=; rows=; for model in $(MODELS); do \
	  $(MAKE) --no-print-directory reproduce MODEL=$$model || skipped="$$skipped $$model"; \
	  rows="$$rows $$(ls $$($(MAKE) --no-print-directory -s rows MODEL=$$model) 2>/dev/null)"; \
	done; \
	set -e; rows=$$(printf '%s\n' $$rows | sort -u); \
	[ -z "$$rows" ] || $(PY) metrics.py $$rows --out runs/sweep.jsonl --report runs/sweep.md; \
	if [ "$$skipped" ]; then echo "sweep: skipped$$skipped (each said why, above)"; exit 1; fi

rows:
	@echo $(ROWS)

# Two models of one last name would share a folder.
own:
	@mkdir -p $(RUN); [ ! -e $(RUN)/model ] || [ "$$(cat $(RUN)/model)" = "$(MODEL)" ] || \
	  { echo "$(RUN) has results of $$(cat $(RUN)/model); move it away to run $(MODEL)" >&2; exit 1; }
	@echo $(MODEL) > $(RUN)/model

figures: $(ROWS) | $(FIGURES) ## four pictures: CDFs, first tokens, families, losses
	$(PY) metrics.py figures $^ --runs $(TRAINED:%=$(RUN)/%) --out $(RUN)/figures

readme: $(ROWS) | $(FIGURES) ## the embedded model's tables and pictures, written into the README
	$(PY) metrics.py $^ --out tests/tiny/scores.jsonl --runs $(TRAINED:%=$(RUN)/%) --report README.md
	$(PY) metrics.py figures $^ --runs $(TRAINED:%=$(RUN)/%) --out tests/tiny/figures

novelty: $(patsubst %,$(NOVELTY)/%/generations.jsonl,base $(TRAINED)) ## NoveltyBench, judged by a classifier and a 27B reward model
	$(PY) metrics.py novelty $(^D) $(JUDGES)

retention: $(TRAINED:%=$(RUN)/%/adapter_config.json) | own $(BENCHMARKS) $(TINYBENCHMARKS) ## tinyBenchmarks and PALOMA, by lm-evaluation-harness
	@status=0; for method in base $(TRAINED); do \
	  $(PY) sample.py retention --model $(MODEL) $(FLAGS_retention) --out $(RUN)/retention/$$method \
	    $$([ $$method = base ] || echo --adapter $(RUN)/$$method) || status=1; \
	done; \
	! ls $(RUN)/retention/*/*.json >/dev/null 2>&1 || \
	  $(PY) metrics.py $(RUN)/retention/*/*.json --out $(RUN)/retention.jsonl; exit $$status

merge: $(TRAINED:%=$(RUN)/merged/%) ## checkpoints with the adapters in them, for tools that take none

test: $(VENV) $(BENCHMARKS) $(FIGURES) ## lint, and all tests, on the embedded model
	$(PY) -m ruff check -q . && $(PY) -m ruff format -q --check .
	$(PY) -m pytest -q tests

bench: $(RUN)/soft/adapter_config.json ## speed against the plain way, as ratios inside one run
	RAYON_NUM_THREADS=1 $(PY) tests/bench.py --model $(MODEL) --adapter $(RUN)/soft --out $(RUN)/bench.jsonl

venv: $(VENV) ## the environment, at .venv (PYTHON=python3 uses an existing interpreter instead)

.venv/installed: requirements-dev.txt requirements.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install -q -r requirements-dev.txt
	@touch $@

clean: ## remove every output (runs/); the environment stays
	rm -rf runs

.venv/benchmarks: requirements-benchmarks.txt | $(VENV)
	.venv/bin/python -m pip install -q -r requirements.txt -r requirements-benchmarks.txt
	@touch $@

.venv/figures: requirements-figures.txt | $(VENV)
	.venv/bin/python -m pip install -q -r requirements-figures.txt
	@touch $@

# Not on PyPI. Without it retention reports plain accuracies instead of gp-IRT; the next `make retention` tries again.
.venv/tinyBenchmarks: | $(BENCHMARKS)
	@.venv/bin/python -m pip install -q git+https://github.com/felipemaiapolo/tinyBenchmarks && touch $@ || \
	  echo "tinyBenchmarks could not be installed: plain accuracies instead of gp-IRT, and marked so"

$(DATA)/train.jsonl: distributions.py | $(VENV)
	$(PY) distributions.py --out $(DATA)

.SECONDEXPANSION:
$(RUN)/%/adapter_config.json: train_$$(firstword $$(subst -, ,$$*)).py $(DATA)/train.jsonl | $(VENV) own
	rm -rf $(RUN)/$* $(RUN)/*/$* $(RUN)/*/$*.jsonl* $(RUN)/*/$*.run.json
	$(LAUNCH) $< --model $(MODEL) --data $(DATA)/train.jsonl --out $(RUN)/$* $(or $(FLAGS_$*),$(FLAGS))

# Rows of one axis: of the base model, of the base model under the SSOT protocol, of an adapter.
PROMPTS_numbers := --prompts $(DATA)/unseen.jsonl $(DATA)/ood.jsonl --n $(N)
define axis
$(RUN)/$(1)/base.jsonl: $(DATA)/train.jsonl | $$(VENV) own
	$(LAUNCH) sample.py $(1) --model $(MODEL) $$(PROMPTS_$(1)) $$(FLAGS_$(1)) --out $$@

$(RUN)/$(1)/ssot.jsonl: $(DATA)/train.jsonl | $$(VENV) own
	$(LAUNCH) sample.py $(1) --model $(MODEL) $$(PROMPTS_$(1)) $$(FLAGS_$(1)) --ssot $$(FLAGS_ssot) $$(FLAGS_$(1)_ssot) --out $$@

$(RUN)/$(1)/%.jsonl: $(RUN)/%/adapter_config.json
	$(LAUNCH) sample.py $(1) --model $(MODEL) --adapter $(RUN)/$$* $$(PROMPTS_$(1)) $$(FLAGS_$(1)) --out $$@
endef
$(foreach name,numbers open mcq,$(eval $(call axis,$(name))))

$(NOVELTY)/base/generations.jsonl: | $(BENCHMARKS) own
	$(LAUNCH) sample.py novelty --model $(MODEL) $(or $(FLAGS_novelty),--split $(SPLIT)) --out $@

$(NOVELTY)/%/generations.jsonl: $(RUN)/%/adapter_config.json | $(BENCHMARKS)
	$(LAUNCH) sample.py novelty --model $(MODEL) --adapter $(RUN)/$* $(or $(FLAGS_novelty),--split $(SPLIT)) --out $@

$(RUN)/merged/%: $(RUN)/%/adapter_config.json
	rm -rf $@
	$(PY) sample.py merge --model $(MODEL) --adapter $(RUN)/$* --out $@
