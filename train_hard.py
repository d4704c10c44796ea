"""Hard calibration: LoRA with cross-entropy on completions sampled from the target.

    python train_hard.py --model Qwen/Qwen3-0.6B --data data/train.jsonl --out runs/hard
    python train_hard.py --model tests/tiny --data data/train.jsonl --out runs/small --limit 64 --branches 16 --epochs 1

The model sees only draws, as in ordinary fine-tuning, yet in expectation it learns the same distribution:
E[cross-entropy] = entropy of the target + KL(target || model). No trie is needed.

Recipe (that of arXiv 2605.11845, and the defaults): 16 draws per prompt and epoch from 16384 bins, 32 completions x
2 epochs = 1988 steps, LoRA r 16, alpha 32, dropout .05 on q/k/v/o, AdamW at lr 2e-4 with weight decay
.01, 3 % warm-up, cosine decay.

Differences from the paper's published code:
1. Batches mix families evenly to the last one; theirs run out of the small families half-way.
2. --branches K trains K draws of a prompt behind one prompt pass. --branches 16 sees the same 63,616
   completions in 126 steps of 32 prompts (2 epochs) or 189 (3 epochs, soft's number). K=1 is the paper's.
3. Where the paper is silent: gradients are clipped at norm 1, as transformers' Trainer does.

Reads prompt rows; writes a PEFT adapter folder with run.json (what was run; written first) and log.jsonl.
To try a new objective, copy this file to train_mine.py and edit hard_loss.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

import trie
from distributions import (
    InputError,
    Parser,
    mixed_batches,
    natural,
    positive_float,
    positive_int,
    prompt_rng,
    read_prompts,
    run,
    sample_outputs,
)

MAX_BINS = 16384

# ---------------------------------------------------------------------------------- the objective: edit here


def hard_loss(logits: torch.Tensor, completions: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the completions, in nats per token, the end token included (arXiv 2605.11845, hard).

    logits (R, L, V): the model's. completions (R, L): token ids, PAD after the end of short ones.
    """
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), completions.flatten(), ignore_index=trie.PAD)


# ----------------------------------------------------------------------------------------------- the data


def prepare(tokenizer, end: int, row: dict, draws: int, rng: np.random.Generator) -> dict:
    """One prompt's ids, `draws` sampled completions (draws, L), and what a perfect sampler loses on each."""
    texts, perfect = sample_outputs(row["family"], row["params"], draws, rng, MAX_BINS)
    return {
        "prompt": trie.chat_ids(tokenizer, row["prompt"]),
        "completions": trie.encode(tokenizer, texts, end),
        "floor": -np.log(perfect),
    }


def stack(parts: list[np.ndarray]) -> np.ndarray:
    """Completions of several prompts, filled up with PAD to one length. (R, L)"""
    length = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(p, ((0, 0), (0, length - p.shape[1])), constant_values=trie.PAD) for p in parts])


# ----------------------------------------------------------------------------------------------- the loop


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="hub id or folder of a chat model")
    parser.add_argument("--data", required=True, help="prompt rows (train.jsonl)")
    parser.add_argument("--out", required=True, help="adapter folder to write")
    parser.add_argument("--batch", type=positive_int, default=32, help="prompts per optimizer step (default 32)")
    parser.add_argument("--epochs", type=positive_int, default=2, help="default 2")
    parser.add_argument("--draws", type=positive_int, default=16, help="completions per prompt and epoch (default 16)")
    parser.add_argument("--lr", type=positive_float, default=2e-4, help="peak learning rate (default 2e-4)")
    parser.add_argument("--branches", type=positive_int, default=1, help="completions per prompt pass (default 1)")
    parser.add_argument("--accumulate", type=positive_int, default=1, help="split a step into so many passes")
    what = "recompute activations in the backward pass: less memory, more time"
    parser.add_argument("--gradient-checkpointing", action="store_true", help=what)
    parser.add_argument("--limit", type=positive_int, help="train on so many prompts only, evenly spaced")
    parser.add_argument("--seed", type=natural, default=0)
    args = parser.parse_args()
    if args.draws % args.branches:
        raise InputError(f"--branches {args.branches} must divide --draws {args.draws}")

    rows = read_prompts([args.data], args.limit)
    out = Path(args.out)
    if (out / "adapter_config.json").exists():
        raise InputError(f"{out} already holds a trained adapter; remove it or choose another --out")
    state = trie.processes()  # several under `accelerate launch`; each works on its share of every batch
    tokenizer, device, main_process = trie.load_tokenizer(args.model), state.device, state.is_main_process
    end = trie.end_token(tokenizer)
    torch.manual_seed(args.seed)
    model = trie.load_model(args.model, device=device)
    lora = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        exclude_modules=".*vision_tower.*" if hasattr(model.config, "vision_config") else None,
    )  # fmt: skip
    model = get_peft_model(model, lora).train()
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if main_process:
        trie.write_run(out / "run.json", args, device, trie.digests([args.data]))

    # Everything is drawn before the first step, each prompt from its own random stream.
    data = [
        prepare(tokenizer, end, row, args.epochs * args.draws, prompt_rng(args.seed, row["id"]))
        for row in tqdm(rows, "prepare", leave=False, disable=not main_process)
    ]
    # A unit of work is one pass of a prompt with `branches` of its completions behind it.
    groups = args.draws // args.branches
    units = [(i, group) for i in range(len(rows)) for group in range(groups)]
    order = np.random.default_rng(args.seed)
    steps = [
        [(i, (epoch * groups + group) * args.branches) for i, group in (units[u] for u in batch)]
        for epoch in range(args.epochs)
        for batch in mixed_batches([rows[i]["family"] for i, _ in units], args.batch, order)
    ]
    if min(map(len, steps)) < state.num_processes:
        raise InputError(f"--batch {args.batch} is too small for {state.num_processes} processes")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.01)
    accelerator = Accelerator(mixed_precision="no")
    model, optimizer = accelerator.prepare(model, optimizer)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.03 * len(steps)), len(steps))

    with open(out / "log.jsonl" if main_process else os.devnull, "w") as log:
        for step, batch in enumerate(bar := tqdm(steps, "hard", disable=not main_process), 1):
            start, loss = time.perf_counter(), 0.0
            drawn = {(i, first): slice(first, first + args.branches) for i, first in batch}
            answers = sum((data[i]["completions"][k] != trie.PAD).sum() for (i, _), k in drawn.items())
            tokens = sum(len(data[i]["prompt"]) for i, _ in batch) + int(answers)
            share = batch[state.process_index :: state.num_processes]
            for part in np.array_split(share, min(args.accumulate, len(batch) // state.num_processes)):
                prompts = [data[i]["prompt"] for i, _ in part]
                completions = stack([data[i]["completions"][drawn[i, first]] for i, first in part])
                weight = (completions != trie.PAD).sum() / answers
                completions = torch.from_numpy(completions).long().to(device)
                if args.gradient_checkpointing:  # it recomputes layers, which would write into a cache twice
                    logits = trie.complete(model, prompts, completions)
                else:
                    logits = trie.branch(model, trie.prefill(model, prompts), completions)  # (B * K, L, V)
                part_loss = hard_loss(logits, completions) * weight
                accelerator.backward(part_loss * state.num_processes)  # it averages over the processes
                loss += part_loss.detach()
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            floor = sum(data[i]["floor"][k].sum() for (i, _), k in drawn.items()) / answers
            record = {"step": step, "loss": float(accelerator.reduce(loss)), "floor": float(floor)}
            record |= {"lr": schedule.get_last_lr()[0], "tokens": tokens, "seconds": time.perf_counter() - start}
            schedule.step()
            log.write(json.dumps(record) + "\n")
            log.flush()
            bar.set_postfix(loss=f"{record['loss']:.3f}", perfect=f"{record['floor']:.3f}")
    trie.save_adapter(accelerator, model, out)


if __name__ == "__main__":
    run(main)
