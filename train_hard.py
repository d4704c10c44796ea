r"""Hard calibration: fine-tune a language model on samples from the target distributions.

    python train_hard.py --model Qwen/Qwen3-0.6B --data runs/data/train.jsonl --out runs/hard

To try it in seconds, use the bundled model and 64 prompts:

    python distributions.py --out runs/data
    python train_hard.py --model tests/tiny --data runs/data/train.jsonl --out runs/try-hard \
        --limit 64 --epochs 1 --branches 16 --lr 2e-3

The idea. This is ordinary fine-tuning: the model sees prompts with sampled answers, and its loss is
the cross-entropy of their tokens. No trie is needed, yet the model still learns the distribution,
because the expected cross-entropy is the entropy of the target plus KL(target || model). What
train_soft.py computes exactly is estimated here from samples.

The recipe is the paper's (arXiv 2605.11845): two epochs of 16 answers to each of 1988 prompts, in
batches of 32 answers (1988 steps), with LoRA on the attention projections. The main differences
from the paper's code (README lists all):

1) Each epoch mixes all families evenly. In the paper's code the small ones run out halfway.
2) `--branches K` trains on K answers to a prompt but reads the prompt only once. The default, K=1,
   is as in the paper. With `--branches 16`, the model sees the same 63,616 answers in only 126
   steps. To compare with soft after the same number of steps (189), add `--epochs 3`.

The script reads prompts and writes a folder: a PEFT adapter, run.json (how it was made) and
log.jsonl (the loss and its floor at every step).

To try an objective of your own, copy this file to train_mine.py and edit the three functions
below. What follows them is the same in train_soft.py, line for line.
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

EPOCHS = 2
DRAWS = 16  # sampled answers for each prompt, in each epoch
BINS = 16384  # canonical outputs; soft keeps only 1001, because it builds a trie of them

# ------------------------------------------------------------------------------- the objective
# prepare() runs once for every prompt, collate() and loss() for every batch (or part of one).


def prepare(tokenizer, end: int, row: dict, draws: int, rng: np.random.Generator) -> dict:
    """Sample a prompt's answers.

    Returns the prompt's token ids, and `draws` answers, which are enough for all epochs:

        {"prompt": [...], "answers": [{"path": ..., "weight": ..., "floor": ..., ...}, ...]}

    path     the answer's tokens
    weight   its weight in the batch mean
    floor    a perfect sampler's loss on this answer (optional)
    ...      whatever collate() needs: here, nothing
    """
    texts, perfect = distributions.sample_outputs(row, draws, rng, BINS)
    answers = []
    for tokens, p in zip(trie.encode(tokenizer, texts, end), perfect.tolist(), strict=True):
        path = tokens[tokens != trie.PAD]
        floor = -math.log(max(p, 1e-300)) / len(path)  # far out in a tail, p may round to 0
        # Weighting by length makes the batch mean a mean over tokens, as in ordinary fine-tuning.
        answers.append({"path": path, "weight": len(path), "floor": floor})
    return {"prompt": trie.chat_ids(tokenizer, row["prompt"]), "answers": answers}


def collate(answers: list[dict]) -> dict[str, torch.Tensor]:
    """Stack R answers of at most L tokens: completions (R, L), padded with PAD."""
    paths = [torch.from_numpy(answer["path"]).long() for answer in answers]
    pad = torch.nn.utils.rnn.pad_sequence
    return {"completions": pad(paths, batch_first=True, padding_value=trie.PAD)}


def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy, averaged over the tokens of an answer; nats per token, shape (R,).

    logits has shape (R, L, V). The end token counts as well: a model must know when to stop.
    """
    completions = batch["completions"]
    real = completions != trie.PAD  # (R, L)
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        completions.flatten(),
        ignore_index=trie.PAD,
        reduction="none",
    )
    return losses.view_as(completions).sum(1) / real.sum(1)


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
