r"""Soft calibration: fine-tune a language model on exact next-token probabilities.

    python train_soft.py --model Qwen/Qwen3-0.6B --data runs/data/train.jsonl --out runs/soft

To try it in seconds, use the bundled model and 64 prompts:

    python distributions.py --out runs/data
    python train_soft.py --model tests/tiny --data runs/data/train.jsonl --out runs/try-soft \
        --limit 64 --epochs 1 --lr 2e-3

The idea. A prompt asks for one random number from a known distribution. This tells us how probable
each next token should be after every prefix of an answer ("", "3", "3.", "3.1", ...); the prefix
trie in trie.py computes it. So there is no need to estimate these probabilities from samples. A
sampled answer only decides which prefixes we visit; at each of them we pull the model's whole
next-token distribution towards the target, with KL(target || model) as the loss.

The recipe is the paper's (arXiv 2605.11845): three epochs over 1988 prompts, in batches of at most
32 (189 steps), with LoRA on the attention projections. The main differences from the paper's code
(README lists all):

1) Each epoch mixes all families evenly. In the paper's code the small ones run out halfway.
2) `--draws K --branches K` trains on K answers to a prompt but reads the prompt only once. The
   default, K=1, is as in the paper.

The script reads prompts and writes a folder: a PEFT adapter, run.json (how it was made) and
log.jsonl (the loss and its floor at every step).

To try an objective of your own, copy this file to train_mine.py and edit the three functions
below. What follows them is the same in train_hard.py, line for line.
"""

import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

import distributions
import trie

EPOCHS = 3
DRAWS = 1  # sampled answers for each prompt, in each epoch
BINS = 1001  # canonical outputs of a continuous distribution

# ------------------------------------------------------------------------------- the objective
# prepare() runs once for every prompt, collate() and loss() for every batch (or part of one).


def prepare(tokenizer, end: int, row: dict, draws: int, rng: np.random.Generator) -> dict:
    """Sample a prompt's answers and work out their targets.

    Returns the prompt's token ids, and `draws` answers, which are enough for all epochs:

        {"prompt": [...], "answers": [{"path": ..., "weight": ..., "floor": ..., ...}, ...]}

    path     the answer's tokens
    weight   its weight in the batch mean
    floor    a perfect sampler's loss, on average over the outputs (optional)
    ...      whatever collate() needs: here, `targets` after each of its prefixes

    >>> row = {"family": "bernoulli", "params": {"p": 0.5}, "prompt": "Toss a coin."}
    >>> _, tokenizer, end = trie.load("tests/tiny")
    >>> example = prepare(tokenizer, end, row, draws=1, rng=np.random.default_rng(0))
    >>> [tokenizer.decode(token) for token in example["answers"][0]["path"]]
    ['1', '<|im_end|>']
    """
    # perfect: the probability that a perfect sampler, which may print any number, prints each text
    texts, probs, perfect = distributions.canonical_outputs(row, BINS)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    perfect = perfect[tree.order]  # the trie sorts its leaves
    floor = trie.kl_floor(tree.probs, perfect, tree.lengths)

    answers = []
    for leaf in tree.quantile_leaves(rng.random(draws)):  # sampled from the target
        targets = tree.path_targets(leaf)
        answers.append({"path": tree.path(leaf), "targets": targets, "weight": 1, "floor": floor})
    return {"prompt": trie.chat_ids(tokenizer, row["prompt"]), "answers": answers}


def collate(answers: list[dict]) -> dict[str, torch.Tensor]:
    """Stack R answers of at most L tokens; a prefix has at most C children in the trie.

    completions (R, L): the answers' tokens, padded with PAD
    tokens (R, L, C):   the children of each prefix
    q (R, L, C):        their target probabilities, 0 where there are fewer than C
    """
    paths = [answer["path"] for answer in answers]
    targets = [answer["targets"] for answer in answers]
    completions, tokens, q = trie.pad_targets(paths, targets)
    return {"completions": completions, "tokens": tokens, "q": q}


def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """KL(target || model), averaged over the prefixes of an answer; nats per token, shape (R,).

        KL(prefix) = sum over children c of  q(c) * (log q(c) - log p(c))

    logits has shape (R, L, V). The softmax runs over the full vocabulary, so probability on tokens
    that begin no answer is penalized as well.
    """
    tokens, q = batch["tokens"], batch["q"]
    real = batch["completions"] != trie.PAD  # (R, L)
    log_p = logits.float().log_softmax(-1).gather(-1, tokens)  # (R, L, C)
    kl = (torch.xlogy(q, q) - q * log_p).sum(-1)  # (R, L); 0 after the end, where q = 0
    return kl.sum(1) / real.sum(1)


# ------------------------------------------------------------------------ the recipe and the plan


def add_lora(model, seed: int):
    """Add the paper's LoRA adapter, ready to train.

    PEFT keeps the adapter's weights in float32, even if the model is in bfloat16, so that small
    updates are not rounded away.
    """
    torch.manual_seed(seed)  # for the adapter's initial weights, and for dropout
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        exclude_modules=trie.vision_modules(model),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora).train()


class Unit(NamedTuple):
    """One prompt with a few of its answers, for which the prompt is read only once."""

    prompt: int  # the index of the prompt
    first: int  # the index of the first answer; the unit's other answers follow it


def plan(families: list[str], args) -> list[list[Unit]]:
    """Decide which answers each optimizer step sees: a list of steps, each a list of units.

    families[i] is the family of prompt i. In every epoch each prompt uses `draws` new answers,
    `branches` at a time, and every answer is used exactly once. A step is a batch of units, in
    which the families are mixed.

    One prompt with four answers in an epoch, two at a time, makes two units. With --batch 2 both
    fit in one step. So each epoch is one step: the first uses answers 0 to 3, the second 4 to 7.

    >>> from types import SimpleNamespace
    >>> args = SimpleNamespace(epochs=2, draws=4, branches=2, batch=2, seed=0)
    >>> for step in plan(["gaussian"], args):
    ...     print([unit.first for unit in sorted(step)])    # the first answer of each unit
    [0, 2]
    [4, 6]
    """
    rng = np.random.default_rng(args.seed)
    steps = []
    for epoch in range(args.epochs):
        firsts = range(epoch * args.draws, (epoch + 1) * args.draws, args.branches)
        units = [Unit(i, first) for i in range(len(families)) for first in firsts]
        family_of = [families[unit.prompt] for unit in units]
        for batch in distributions.mixed_batches(family_of, args.batch, rng):
            steps.append([units[i] for i in batch])
    return steps


# ------------------------------------------------------------------------------------ the loop


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="hub id or folder of a chat model")
    add("--data", required=True, help="prompts to train on (train.jsonl)")
    add("--out", required=True, help="folder for the adapter")
    add("--batch", type=int, default=32, help="units (a prompt and its branches) per step (32)")
    add("--epochs", type=int, default=EPOCHS, help="passes over the prompts (%(default)s)")
    add("--draws", type=int, default=DRAWS, help="answers per prompt and epoch (%(default)s)")
    add("--branches", type=int, default=1, help="answers that share one pass over their prompt (1)")
    add("--lr", type=float, default=2e-4, help="peak learning rate (2e-4)")
    add("--accumulate", type=int, default=1, help="parts of a step, computed in turn (1)")
    add("--limit", type=int, help="train on this many prompts only, evenly spaced")
    add("--seed", type=int, default=0, help="seed for answers, batches and weights (0)")
    args = parser.parse_args()

    out = Path(args.out)
    distributions.check_method(out.name)
    distributions.must_be_new(out / "adapter_model.safetensors", remove=out)
    if args.draws % args.branches:
        raise distributions.InputError(
            f"--branches {args.branches} must divide --draws {args.draws}"
        )
    rows = distributions.read_prompts([args.data], args.limit)

    model, tokenizer, end = trie.load(args.model)
    model = add_lora(model, args.seed)

    # Under `accelerate launch` several processes run this file (distributed data parallel, DDP);
    # each takes its share of a batch.
    accelerator = Accelerator(mixed_precision="no")
    main_process = accelerator.is_main_process
    rank, world = accelerator.process_index, accelerator.num_processes
    steps = plan([row.get("family", "own target") for row in rows], args)
    smallest = min(len(batch) for batch in steps)
    if smallest < world:
        raise distributions.InputError(
            f"a step of {smallest} units is too small for {world} processes; "
            "raise --batch, or --limit if you set one"
        )

    inputs = {"data": distributions.digest(args.data), "identity": trie.identity(args.model)}
    checkpoint_file = out / "checkpoint.pt"
    if main_process and not checkpoint_file.exists():  # a resumed run has its run.json
        trie.write_run(out / "run.json", args, **inputs)

    # Sample every answer before the first step. Each prompt has a random stream of its own, so its
    # answers do not depend on the other prompts.
    examples = []
    for row in tqdm(rows, "prepare", leave=False, disable=not main_process):
        rng = distributions.prompt_rng(args.seed, row["id"])
        examples.append(prepare(tokenizer, end, row, args.epochs * args.draws, rng))

    def answers_of(units: list[Unit]) -> list[dict]:
        answers = []
        for unit in units:
            stop = unit.first + args.branches
            answers += examples[unit.prompt]["answers"][unit.first : stop]
        return answers

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=args.lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.03 * len(steps)), len(steps))
    # subtle: the schedule is not prepared; accelerate would advance it once for every process.
    model, optimizer = accelerator.prepare(model, optimizer)

    # A run that was killed continues from its last checkpoint; later lines of its log are dropped.
    options = {k: v for k, v in vars(args).items() if k not in ("model", "data", "out")}
    code = (__file__, trie.__file__, distributions.__file__)
    made = {"options": options, "processes": world, **inputs}
    made["code"] = [distributions.digest(file) for file in code]
    checkpoint = trie.Checkpoint(checkpoint_file, accelerator, made, trainable, optimizer, schedule)
    finished = checkpoint.load()
    if main_process:
        kept = (out / "log.jsonl").read_text().splitlines(True)[:finished] if finished else []
        distributions.write_text(out / "log.jsonl", "".join(kept))

    log = open(out / "log.jsonl" if main_process else os.devnull, "a")
    bar = tqdm(steps, out.name, disable=not main_process)
    for number, batch in enumerate(bar, 1):
        if number <= finished:
            continue
        start = time.perf_counter()
        batch_answers = answers_of(batch)
        total_weight = sum(answer["weight"] for answer in batch_answers)
        step_loss = 0.0

        # The gradients of the parts of a batch add up, so it can be divided to save memory.
        # subtle: every process must run the same number of parts, none of them empty, or DDP waits
        # forever. The smallest share has len(batch) // world units.
        my_share = batch[rank::world]
        parts = min(args.accumulate, len(batch) // world)
        for i in range(parts):
            part = my_share[i::parts]
            answers = answers_of(part)
            tensors = {k: v.to(accelerator.device) for k, v in collate(answers).items()}

            # Read each prompt once, then all its answers, continuing from the prompt's cache.
            prompts = [examples[unit.prompt]["prompt"] for unit in part]
            context = trie.prefill(model, prompts)
            logits = trie.branch(model, context, tensors["completions"])  # (R, L, V)

            weights = [answer["weight"] / total_weight for answer in answers]
            weights = torch.tensor(weights, device=accelerator.device)
            part_loss = (loss(logits, tensors) * weights).sum()
            # subtle: the weights add up to 1 over all processes, so their gradients must be added.
            # DDP averages them instead; multiplying by `world` makes up for it.
            accelerator.backward(part_loss * world)
            step_loss += part_loss.detach()

        step_loss = float(accelerator.reduce(step_loss, "sum"))
        if not math.isfinite(step_loss):
            raise distributions.InputError(
                f"the loss of step {number} is {step_loss}; remove {out} and try a lower --lr"
            )
        optimizer.step()
        optimizer.zero_grad()
        lr = schedule.get_last_lr()[0]
        schedule.step()

        # The floor is a perfect sampler's loss; see prepare().
        record = {"step": number, "loss": step_loss, "lr": lr}
        floor = math.nan
        if all("floor" in answer for answer in batch_answers):
            floor = sum(a["floor"] * a["weight"] for a in batch_answers) / total_weight
            record["floor"] = floor
        prompt_tokens = sum(len(examples[unit.prompt]["prompt"]) for unit in batch)
        record["tokens"] = prompt_tokens + sum(len(answer["path"]) for answer in batch_answers)
        record["seconds"] = time.perf_counter() - start
        log.write(json.dumps(record) + "\n")
        log.flush()
        bar.set_postfix(loss=f"{step_loss:.3f}", floor=f"{floor:.3f}")
        checkpoint.save_if_due(number, end_of_epoch=number % (len(steps) // args.epochs) == 0)

    log.close()
    trie.save_adapter(accelerator, model, out)
    if main_process:  # the others may get here before the adapter is saved
        checkpoint.path.unlink(missing_ok=True)


if __name__ == "__main__":
    distributions.run(main)
