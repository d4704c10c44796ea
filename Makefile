## The pipeline: prompts -> adapters -> draws -> scores. Makes what is missing and keeps the rest.
##
##   make reproduce                         the bundled model: a few minutes on two CPU cores
##   make reproduce MODEL=Qwen/Qwen3-0.6B   the paper's recipe, on a model from the Hub
##   make test                              lint and all tests
##
##   MODEL    hub id or folder of a chat model; results go to runs/<last part of its name>
##   METHODS  "soft hard": train_NAME.py trains NAME; ssot prompts the untrained model
##   AXES     "numbers open mcq": what is measured, with N draws for each number prompt
##   SEED     for training and drawing; give each seed its own RUN (results folder)
##   FLAGS    options for every training run; FLAGS_soft: for training soft; FLAGS_open: for
##            drawing on that axis; FLAGS_ssot: for drawing with ssot
##   LAUNCH   ".venv/bin/accelerate launch" uses all GPUs; PYTHON: an interpreter other than .venv's

MODEL   ?= tests/tiny
METHODS ?= soft hard
AXES    ?= numbers open mcq
N       ?= 1000
SEED    ?= 0
RUN     ?= runs/$(notdir $(MODEL))
DATA    ?= runs/data
PYTHON  ?= .venv/bin/python
LAUNCH  ?= $(PYTHON)
override MODEL := $(MODEL:%/=%)

# A model as small as the bundled one needs a high learning rate, and can afford more answers per
# prompt.
ifeq ($(MODEL),tests/tiny)
FLAGS      ?= --lr 2e-3
FLAGS_soft ?= --draws 8 --branches 8
FLAGS_hard ?= --branches 16
FLAGS_ssot ?= --n 50 --max-tokens 160
endif

# On a CPU, two stages run side by side, one thread each (a make within make inherits -j2).
ifeq ($(wildcard /dev/nvidia0)$(MAKELEVEL),0)  # no GPU, and not within another make
MAKEFLAGS += -j2
endif
export OMP_NUM_THREADS ?= 1
# These let torch reuse memory instead of returning it to the system each time.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184

TRAINED := $(filter-out ssot,$(METHODS))
MISSING := $(filter-out $(wildcard train_*.py),$(TRAINED:%=train_%.py))
ifeq ($(filter board,$(MAKECMDGOALS)),)  # board writes trainers before it needs them
$(if $(MISSING),$(error METHODS: there is no $(MISSING)))
endif

ROWS  := $(foreach method,base $(METHODS),$(AXES:%=$(RUN)/$(method)/%.jsonl))
ROWS  := $(filter-out $(RUN)/ssot/mcq.jsonl,$(ROWS))  # ssot is not meant for exams
FIRST := venv $(filter models/%,$(MODEL))  # needed before any stage; rules.mk makes models/NAME

reproduce: $(ROWS)
	@$(PYTHON) metrics.py $^ --out $(RUN)/scores.jsonl --report $(RUN)/report.md

# Every stage has the prerequisite FORCE, so that its recipe always runs. The recipe is `once`,
# which runs a script only if its result is missing:
#
#     $(call once, the script and its options, the user's flags, the value of --out)
#
# Beside the result, FILE.made keeps the command, one option per line, and the checksums of what the
# stage depends on: its prerequisites, and any files that the flags name. If these have changed
# since, make shows the difference and stops, so results are never mixed or overwritten. (The result
# itself is written whole or not at all; each script sees to that.)
define once
@mkdir -p $(@D); \
now=$$(echo $1 $2 --out $3 | awk '{ gsub(/ --/, "\n--"); print }'; \
       cksum /dev/null $(filter-out FORCE,$^) $(wildcard $(subst =, ,$2))); \
if [ ! -e $@ ]; then \
  echo "$$now" > $@.made; \
  $(LAUNCH) $1 $2 --out $3; \
elif ! echo "$$now" | diff $@.made - >&2; then \
  echo "$@ was made with other settings (< then, > now). To redo it, remove $(strip $3)" >&2; \
  exit 1; \
fi
endef

# distributions.py writes the prompts, or checks that they are still the same. A DATA with your own
# prompts has no train.jsonl.made, and is left alone.
$(DATA)/train.jsonl: FORCE | $(FIRST)
	@if [ ! -e $@ ] || [ -e $@.made ]; then \
	  mkdir -p $(DATA) && : >> $@.made && \
	  $(PYTHON) distributions.py --out $(DATA) $(FLAGS_data); \
	fi
$(DATA)/unseen.jsonl $(DATA)/ood.jsonl: $(DATA)/train.jsonl ;

$(RUN)/%/adapter_model.safetensors: train_%.py $(DATA)/train.jsonl FORCE | $(FIRST)
	$(call once, train_$*.py --model $(MODEL) --data $(DATA)/train.jsonl --seed $(SEED), \
	  $(FLAGS) $(FLAGS_$*), $(@D))

# In the rules for rows, $* is the method. Any method draws with its adapter, except base, which is
# the model as it is, and ssot, which is a way to prompt it.
adapter    = $(if $(filter base ssot,$*),,$(@D)/adapter_model.safetensors)
drawn_with = $(if $(adapter),--adapter $(@D)) $(if $(filter ssot,$*),--protocol ssot)
draw_once  = $(call once, sample.py $1 --model $(MODEL) $(drawn_with) --seed $(SEED) $2, \
  $(FLAGS_$1) $(if $(filter ssot,$*),$(FLAGS_ssot)), $@)

.SECONDEXPANSION:  # so that a prerequisite may depend on the target: $$(adapter)
$(RUN)/%/numbers.jsonl: $(DATA)/unseen.jsonl $(DATA)/ood.jsonl $$(adapter) FORCE | $(FIRST)
	$(call draw_once,numbers,--n $(N) --prompts $(DATA)/unseen.jsonl $(DATA)/ood.jsonl)
$(RUN)/%/open.jsonl: $$(adapter) FORCE | $(FIRST)
	$(call draw_once,open)
$(RUN)/%/mcq.jsonl: $$(adapter) FORCE | $(FIRST)
	$(call draw_once,mcq)

test: venv extras
	$(PYTHON) -m ruff check -q . && $(PYTHON) -m ruff format -q --check .
	$(PYTHON) -m pytest -q -n 2 --dist loadfile tests

venv: $(if $(filter .venv/%,$(PYTHON)),.venv/installed)
.venv/installed: requirements.txt requirements-dev.txt
	python3 -m venv .venv && .venv/bin/pip install -q -r requirements-dev.txt && touch $@

include tests/extras/rules.mk
.PHONY: reproduce test venv FORCE
# On Ctrl-C, make deletes the target that it was making, but not these.
.PRECIOUS: $(addprefix $(RUN)/%/,adapter_model.safetensors numbers.jsonl open.jsonl mcq.jsonl)
