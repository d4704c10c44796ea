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
##   FLAGS    options for every training run; FLAGS_soft: for that method; FLAGS_open: for that axis
##   LAUNCH   ".venv/bin/accelerate launch" uses all GPUs; PYTHON: an interpreter other than .venv's

MODEL   ?= tests/tiny
METHODS ?= soft hard
AXES    ?= numbers open mcq
N       ?= 1000
SEED    ?= 0
RUN     ?= runs/$(notdir $(MODEL:%/=%))
DATA    ?= runs/data
PYTHON  ?= .venv/bin/python
LAUNCH  ?= $(PYTHON)

# A model as small as the bundled one needs a high learning rate; extra answers are cheap for it.
ifeq ($(MODEL),tests/tiny)
FLAGS      ?= --lr 2e-3
FLAGS_soft ?= --draws 8 --branches 8
FLAGS_hard ?= --branches 16
FLAGS_ssot ?= --n 50 --max-tokens 160
endif

# On a CPU, two stages run side by side, one thread each (a make within make inherits -j2). The
# MALLOC settings let torch reuse memory instead of returning it to the system each time.
MAKEFLAGS += $(if $(wildcard /dev/nvidia0)$(MAKELEVEL:0=),,-j2)
export OMP_NUM_THREADS ?= 1
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184

PROMPTED := ssot
TRAINED  := $(filter-out $(PROMPTED),$(METHODS))
$(foreach m,$(if $(filter board,$(MAKECMDGOALS)),,$(TRAINED)),\
  $(if $(wildcard train_$m.py),,$(error METHODS: there is no train_$m.py)))  # board writes some
ROWS := $(foreach method,base $(METHODS),$(AXES:%=$(RUN)/$(method)/%.jsonl))
ROWS := $(filter-out $(PROMPTED:%=$(RUN)/%/mcq.jsonl),$(ROWS))
FIRST := venv $(filter models/%,$(MODEL))  # needed before any stage; rules.mk makes models/NAME

reproduce: $(ROWS)
	@$(PYTHON) metrics.py $^ --out $(RUN)/scores.jsonl --report $(RUN)/report.md

# A stage runs once. FILE.made keeps its command and the checksums of its prompts and its trainer or
# adapter. If any of these has changed, make stops and shows the difference: nothing is mixed or
# overwritten. FILE.made is written first, and removed if the stage fails (`trap` lets the shell do
# so on Ctrl-C). $1: the command; $2: files that it reads, or flags naming some; $3: what to remove
define once
@mkdir -p $(@D); \
today=$$(echo '$(strip $1)' | awk '{ gsub(/ --/, "\n--"); print }'; \
         cksum $(filter-out FORCE %.json,$^) $(wildcard $(subst =, ,$2)) </dev/null); \
if [ ! -e $@ ]; then \
  echo "$$today" > $@.made; trap : INT; \
  $(LAUNCH) $1; status=$$?; [ -e $@ ] || rm -f $@.made; exit $$status; \
elif [ "$$today" != "$$(cat $@.made 2>&1)" ]; then \
  diff=$$(echo "$$today" | diff $@.made - 2>&1 | sed 's/^< /then: /; s/^> /now: /; /^[0-9-]/d'); \
  echo "$@ was made with other settings." $$diff "To redo it, remove $(strip $3)" >&2; exit 1; \
fi
endef
# FORCE runs every recipe; `once` decides what there is to do. For prompts, distributions.py does;
# those of your own, in a DATA without train.jsonl.made, are used as they are.
$(DATA)/train.jsonl: FORCE | $(FIRST)
	@if [ ! -e $@ ] || [ -e $@.made ]; then mkdir -p $(DATA) && : >> $@.made && \
	  $(PYTHON) distributions.py --out $(DATA) $(FLAGS_data); fi
$(DATA)/unseen.jsonl $(DATA)/ood.jsonl: $(DATA)/train.jsonl ;
$(RUN)/%/adapter_config.json: train_%.py $(DATA)/train.jsonl FORCE | $(FIRST)
	$(call once, train_$*.py --model $(MODEL) --data $(DATA)/train.jsonl \
	  --seed $(SEED) $(FLAGS) $(FLAGS_$*) --out $(@D), $(FLAGS) $(FLAGS_$*), $(@D))

# Rows of a trained method need its adapter; base and prompted methods use the model as is. Here $*
# is the method, $1 the axis and $2 the axis's own options. An example:
#   sample.py open --model tests/tiny --adapter runs/tiny/soft --seed 0 --out runs/tiny/soft/...
$(foreach axis,$(AXES),$(foreach m,$(TRAINED),\
  $(eval $(RUN)/$m/$(axis).jsonl: $(RUN)/$m/adapter_config.json)))
prompted  = $(filter $(PROMPTED),$*)
method    = $(if $(filter base,$*),,$(if $(prompted),--protocol $*,--adapter $(@D)))
sample    = sample.py $1 --model $(MODEL) $(method) --seed $(SEED) $2 $(FLAGS_$1)
draw_once = $(call once, $(sample) $(if $(prompted),$(FLAGS_$*)) --out $@, \
  $(@D)/adapter_model.safetensors $(FLAGS_$1), $@)
$(RUN)/%/numbers.jsonl: $(DATA)/unseen.jsonl $(DATA)/ood.jsonl FORCE | $(FIRST)
	$(call draw_once,numbers,--n $(N) --prompts $(DATA)/unseen.jsonl $(DATA)/ood.jsonl)
$(RUN)/%/open.jsonl: FORCE | $(FIRST)
	$(call draw_once,open)
$(RUN)/%/mcq.jsonl: FORCE | $(FIRST)
	$(call draw_once,mcq)
test: venv extras
	$(PYTHON) -m ruff check -q . && $(PYTHON) -m ruff format -q --check .
	$(PYTHON) -m pytest -q -n 2 --dist loadfile tests
venv: $(if $(filter .venv/%,$(PYTHON)),.venv/installed)
.venv/installed: requirements.txt requirements-dev.txt
	python3 -m venv .venv && .venv/bin/pip install -q -r requirements-dev.txt && touch $@
include tests/extras/rules.mk
.PHONY: reproduce test venv FORCE
.PRECIOUS: $(addprefix $(RUN)/%/,adapter_config.json numbers.jsonl open.jsonl mcq.jsonl)
