"""Hard calibration: LoRA with cross-entropy on completions sampled from the target.

    python train_hard.py --model Qwen/Qwen3-0.6B --data data/train.jsonl --out runs/hard
    python train_hard.py --model tests/tiny --data data/train.jsonl --out runs/small --limit 64 --branches 16 --epochs 1

The model sees only draws, as in ordinary fine-tuning, yet in expectation it learns the same distribution:
E[cross-entropy] = entropy of the target + KL(target || model). No trie is needed.

Recipe (that of arXiv 2605.11845, and the defaults): 2 epochs of 16 draws a prompt, of 16384 bins, batches of 32: 1988
steps, LoRA r 16, alpha 32, dropout .05 on q/k/v/o, AdamW at lr 2e-4, weight decay .01, 3 % warm-up, cosine decay.

Differences from the paper's published code:
1. Batches mix families evenly to the last one; theirs run out of the small families half-way.
2. --branches K trains K answers of a prompt behind one prompt pass. K=1 is the paper's recipe; --branches 16 sees the
   same 63,616 completions in 126 steps of 32 prompts; with --epochs 3, 95,424 in 189, soft's number.

Reads prompt rows; writes a PEFT adapter folder with run.json (what was run; written first) and log.jsonl.
To try a new objective, copy this file to train_mine.py and edit the three functions below.
"""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

import distributions as dist
import trie

METHOD, EPOCHS, DRAWS, BINS = "hard", 2, 16, 16384

# ------------------------------------------------------------------------------------------------ edit here


def prepare(tokenizer, end: int, row: dict, draws: int, rng: np.random.Generator) -> dict:
    """What training needs of one prompt: its ids, and `draws` sampled answers, each a path (L,) of token ids, its
    weight in a step's mean (here its tokens), a perfect sampler's loss (optional), and whatever `collate` wants.
    """
    texts, perfect = dist.sample_outputs(row, draws, rng, BINS)
    paths = [tokens[tokens != trie.PAD] for tokens in trie.encode(tokenizer, texts, end)]
    answers = [
        {"path": path, "weight": len(path), "floor": -math.log(max(p, 1e-300)) / len(path)}
        for path, p in zip(paths, perfect.tolist(), strict=True)
    ]
    return {"prompt": trie.chat_ids(tokenizer, row["prompt"]), "answers": answers}


def collate(answers: list[dict]) -> dict[str, torch.Tensor]:
    """R answers as tensors: completions (R, L), filled up with PAD."""
    paths = [torch.from_numpy(answer["path"]).long() for answer in answers]
    return {
        "completions": torch.nn.utils.rnn.pad_sequence(
            paths, batch_first=True, padding_value=trie.PAD
        )
    }


def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of each answer, the end token included. Nats per token, (R,).       (arXiv 2605.11845, hard)

    logits (R, L, V).
    """
    completions, real = batch["completions"], batch["completions"] != trie.PAD
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), completions.flatten(), ignore_index=trie.PAD, reduction="none"
    )
    return losses.view_as(completions).sum(1) / real.sum(1)


# ------------------------------------------------------------------------------------------------- the loop


def main() -> None:
    parser = dist.Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="hub id or folder of a chat model")
    parser.add_argument("--data", required=True, help="prompt rows (train.jsonl)")
    parser.add_argument("--out", required=True, help="adapter folder to write")
    parser.add_argument(
        "--batch", type=int, default=32, help="prompts per optimizer step (default 32)"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default %(default)s")
    parser.add_argument(
        "--draws", type=int, default=DRAWS, help="of a prompt in an epoch (default %(default)s)"
    )
    parser.add_argument(
        "--branches", type=int, default=1, help="answers behind one prompt pass (default 1)"
    )
    parser.add_argument("--lr", type=float, default=2e-4, help="peak learning rate (default 2e-4)")
    parser.add_argument(
        "--accumulate",
        type=int,
        default=1,
        help="split a step into so many passes, for less memory",
    )
    parser.add_argument("--limit", type=int, help="train on so many prompts only, evenly spaced")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    if args.draws % args.branches:
        raise dist.InputError(f"--branches {args.branches} must divide --draws {args.draws}")
    out = Path(args.out)
    dist.refuse(out, out / "adapter_config.json")
    rows = dist.read_prompts([args.data], args.limit)

    model, tokenizer, end = trie.load(args.model)
    model = trie.add_lora(model, args.seed)
    state = (
        trie.processes()
    )  # several under `accelerate launch`; each works on its share of every batch
    if state.is_main_process:
        trie.write_run(out / "run.json", args, data=dist.digest(args.data))

    # All answers are drawn before the first step, each prompt's from a stream of its own, whatever the order of work.
    # Only dropout's masks depend on how rows are laid out: on --accumulate, and on the number of processes.
    draws, bar = (
        args.epochs * args.draws,
        tqdm(rows, "prepare", leave=False, disable=not state.is_main_process),
    )
    data = [
        prepare(tokenizer, end, row, draws, dist.prompt_rng(args.seed, row["id"])) for row in bar
    ]

    # A unit is one pass of a prompt with `branches` of its answers behind it; a step is a batch of units.
    units = [(i, first) for i in range(len(rows)) for first in range(0, args.draws, args.branches)]
    families, rng, steps = (
        [rows[i].get("family", "own") for i, _ in units],
        np.random.default_rng(args.seed),
        [],
    )
    for epoch in range(args.epochs):
        for batch in dist.mixed_batches(families, args.batch, rng):
            steps.append([(units[u][0], epoch * args.draws + units[u][1]) for u in batch])
    if min(map(len, steps)) < state.num_processes:
        raise dist.InputError(
            f"--batch {args.batch} is too small for {state.num_processes} processes"
        )

    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.01
    )
    accelerator = Accelerator(mixed_precision="no")
    model, optimizer = accelerator.prepare(model, optimizer)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.03 * len(steps)), len(steps))
    answers_of = lambda batch: [
        a for i, first in batch for a in data[i]["answers"][first : first + args.branches]
    ]

    with open(out / "log.jsonl" if state.is_main_process else os.devnull, "w") as log:
        for step, batch in enumerate(
            bar := tqdm(steps, METHOD, disable=not state.is_main_process), 1
        ):
            start, value, answers = time.perf_counter(), 0.0, answers_of(batch)
            weight = sum(answer["weight"] for answer in answers)

            share = batch[state.process_index :: state.num_processes]
            for part in np.array_split(
                share, min(args.accumulate, len(batch) // state.num_processes)
            ):
                own = answers_of(part)
                tensors = {name: tensor.to(state.device) for name, tensor in collate(own).items()}

                # The prompts run once; every answer is a branch of its prompt's cache; the gradient flows through it.
                prefix = trie.prefill(model, [data[i]["prompt"] for i, _ in part])
                logits = trie.branch(model, prefix, tensors["completions"])  # (R, L, V)

                weights = torch.tensor(
                    [answer["weight"] / weight for answer in own], device=state.device
                )
                mean = (loss(logits, tensors) * weights).sum()
                accelerator.backward(mean * state.num_processes)  # it averages over the processes
                value += mean.detach()

            record = {
                "step": step,
                "loss": float(accelerator.reduce(value)),
                "lr": schedule.get_last_lr()[0],
            }
            if not math.isfinite(record["loss"]):
                raise dist.InputError(
                    f"the loss of step {step} is not finite, and nothing was saved; lower --lr"
                )
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

            if all("floor" in answer for answer in answers):
                record["floor"] = (
                    sum(answer["floor"] * answer["weight"] for answer in answers) / weight
                )
            record["tokens"] = sum(len(data[i]["prompt"]) for i, _ in batch) + sum(
                len(a["path"]) for a in answers
            )
            log.write(json.dumps(record | {"seconds": time.perf_counter() - start}) + "\n")
            log.flush()
            bar.set_postfix(
                loss=f"{record['loss']:.3f}", perfect=f"{record.get('floor', math.nan):.3f}"
            )

    trie.save_adapter(accelerator, model, out)


if __name__ == "__main__":
    dist.run(main)
