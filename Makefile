## The pipeline: prompts -> adapters -> draws -> scores. Makes what is missing and keeps the rest.
##
##   make reproduce                         the bundled model: ten minutes on two CPU cores
##   make reproduce MODEL=Qwen/Qwen3-0.6B   the paper's recipe, on a model from the Hub
##   make test                              lint and all tests
##
##   MODEL    hub id or folder of a chat model; results go to runs/<last part of its name>
##   METHODS  "soft hard": train_NAME.py trains NAME; ssot prompts the untrained model
##   AXES     "numbers open mcq": what is measured, with N draws for each number prompt
##   SEED     for training and drawing; give each seed its own RUN (results folder)
##   FLAGS    options for every training run; FLAGS_soft: for training soft; FLAGS_open: for
##            drawing on the axis open; FLAGS_ssot: for drawing with ssot
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
# A slash at the end does not matter.
override MODEL := $(MODEL:%/=%)

# A model as small as the bundled one needs a high learning rate, and can afford more answers per
# prompt in training. Only ssot, whose replies are long, draws fewer.
ifeq ($(MODEL),tests/tiny)
FLAGS      ?= --lr 2e-3
FLAGS_soft ?= --draws 8 --branches 8
FLAGS_hard ?= --branches 16
FLAGS_ssot ?= --n 50 --max-tokens 160
endif

# On a CPU, two stages run side by side, one thread each. MAKELEVEL is 0 in the outermost make; an
# inner one inherits -j2.
ifeq ($(wildcard /dev/nvidia[0-9]*)$(MAKELEVEL),0)
MAKEFLAGS += -j2
endif
export OMP_NUM_THREADS ?= 1
# These make torch keep freed memory for reuse.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184

TRAINED := $(filter-out ssot,$(METHODS))
MISSING := $(filter-out $(wildcard train_*.py),$(TRAINED:%=train_%.py))
ifeq ($(filter board,$(MAKECMDGOALS)),)  # `make board` writes trainers before it needs them
$(if $(MISSING),$(error METHODS: there is no $(MISSING)))
endif

ROWS  := $(foreach method,base $(METHODS),$(AXES:%=$(RUN)/$(method)/%.jsonl))
ROWS  := $(filter-out $(RUN)/ssot/mcq.jsonl,$(ROWS))  # ssot draws no exams
FIRST := venv $(filter models/%,$(MODEL))  # needed before any stage; rules.mk makes models/NAME

reproduce: $(ROWS)
	@$(PYTHON) metrics.py $^ --out $(RUN)/scores.jsonl --report $(RUN)/report.md

# Every stage has the prerequisite FORCE, so that its recipe always runs. The recipe is `once`,
# which runs a script only if its result is missing:
#
#     $(call once, the script and its options, the user's flags, the value of --out)
#
# Beside the result, RESULT.made keeps the command, one option per line, and the checksums of what
# the stage depends on: its prerequisites, and any files that the flags name. If these have changed
# since, make shows the difference and stops, so results are never mixed or overwritten. A result
# appears only when it is complete. Until then, the script itself refuses to continue unfinished
# work with other settings. If a stage fails or is interrupted, `trap` removes RESULT.made, which
# could otherwise vouch for a result that you then make by hand.
define once
@mkdir -p $(@D); \
now=$$(echo $1 $2 --out $3 | awk '{ gsub(/ --/, "\n--"); print }'; \
       for file in $(filter-out FORCE,$^) $(subst =, ,$2); do \
         [ ! -f "$$file" ] || cksum "$$file"; \
       done); \
if [ ! -e $@ ]; then \
  echo "$$now" > $@.made; \
  trap '[ -e $@ ] || rm -f $@.made' EXIT INT; \
  $(LAUNCH) $1 $2 --out $3; \
elif ! echo "$$now" | diff $@.made - >&2; then \
  echo "$@ was made with other settings or files (< then, > now)." \
    "To redo it, remove $(strip $3)" >&2; \
  exit 1; \
fi
endef

# distributions.py writes the prompts, or checks that they are still the same. An empty
# train.jsonl.made marks them. A DATA folder of your own has none, and is left alone.
$(DATA)/train.jsonl: FORCE | $(FIRST)
	@if [ ! -e $@ ] || [ -e $@.made ]; then \
	  mkdir -p $(DATA) && : >> $@.made && \
	  $(PYTHON) distributions.py --out $(DATA) $(FLAGS_data); \
	fi
# The same run writes these two.
$(DATA)/unseen.jsonl $(DATA)/ood.jsonl: $(DATA)/train.jsonl ;

$(RUN)/%/adapter_model.safetensors: train_%.py $(DATA)/train.jsonl FORCE | $(FIRST)
	$(call once, train_$*.py --model $(MODEL) --data $(DATA)/train.jsonl --seed $(SEED), \
	  $(FLAGS) $(FLAGS_$*), $(@D))

# make expands a prerequisite before it knows the target; with $$, it waits until it does.
.SECONDEXPANSION:

# In the rules below, $* is the method. Every method draws with its adapter, except base, which is
# the model as it is, and ssot, which is a way to prompt it.
# $(call draw_once, the axis, its options)
adapter    = $(if $(filter base ssot,$*),,$(@D)/adapter_model.safetensors)
drawn_with = $(if $(adapter),--adapter $(@D)) $(if $(filter ssot,$*),--protocol ssot)
draw_once  = $(call once, sample.py $1 --model $(MODEL) $(drawn_with) --seed $(SEED) $2, \
  $(FLAGS_$1) $(if $(filter ssot,$*),$(FLAGS_ssot)), $@)

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
# Without this, make would delete adapters as intermediate files and, on Ctrl-C, a result that has
# just appeared.
.PRECIOUS: $(addprefix $(RUN)/%/,adapter_model.safetensors numbers.jsonl open.jsonl mcq.jsonl)
