"""Soft calibration: LoRA on the exact next-token distribution of every prefix along a sampled path.

    python train_soft.py --model Qwen/Qwen3-0.6B --data data/train.jsonl --out runs/soft
    python train_soft.py --model tests/tiny --data data/train.jsonl --out runs/small --limit 64 --epochs 1   # seconds

For each prompt a canonical output is drawn from its target. At every prefix of that output's token path
the target over next tokens is known exactly (trie.py), and the loss is KL(target || model) there.
The model's log-probabilities are over its full vocabulary, so mass on any other token costs.

Recipe (that of arXiv 2605.11845, and the defaults): 32 prompts x 3 epochs = 189 steps, LoRA r 16, alpha 32, dropout
.05 on q/k/v/o, AdamW at lr 2e-4 with weight decay .01, 3 % warm-up, cosine decay.

Differences from the paper's published code:
1. Batches mix families evenly to the last one; theirs run out of the small families half-way.
2. --branches K trains K paths per prompt and step behind one prompt pass. K=1 is the paper's recipe.
3. Where the paper is silent: gradients are clipped at norm 1, as transformers' Trainer does.

Reads prompt rows; writes a PEFT adapter folder with run.json (what was run; written first) and log.jsonl.
To try a new objective, copy this file to train_mine.py and edit soft_loss.
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
    canonical_outputs,
    mixed_batches,
    natural,
    perfect_probs,
    positive_float,
    positive_int,
    prompt_rng,
    read_prompts,
    run,
)

# ---------------------------------------------------------------------------------- the objective: edit here


def soft_loss(logits: torch.Tensor, tokens: torch.Tensor, q: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the mean over a path's prefixes of KL(target || model), in nats per token.

        KL(prefix) = sum over its children c of  q(c) (log q(c) - log p(c))          (arXiv 2605.11845, soft)

    logits (R, L, V): the model's; p is their softmax over the full vocabulary. tokens, q (R, L, C): the
    children of each prefix and their probabilities, filled up with q = 0. real (R, L): which prefixes exist.
    """
    log_p = logits.float().log_softmax(-1).gather(-1, tokens)  # (R, L, C)
    kl = (torch.xlogy(q, q) - q * log_p).sum(-1)  # (R, L)
    return ((kl * real).sum(1) / real.sum(1)).mean()


# ----------------------------------------------------------------------------------------------- the data


def prepare(tokenizer, end: int, row: dict, paths: int, rng: np.random.Generator) -> dict:
    """One prompt's ids, `paths` sampled paths with their targets, and the loss of a perfect sampler."""
    texts, probs = canonical_outputs(row["family"], row["params"])
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    perfect = perfect_probs(row["family"], row["params"])[tree.order]
    leaves = tree.quantile_leaves(rng.random(paths))
    return {
        "prompt": trie.chat_ids(tokenizer, row["prompt"]),
        "paths": [tree.path(leaf) for leaf in leaves],
        "targets": [tree.path_targets(leaf) for leaf in leaves],
        "floor": trie.kl_floor(tree.probs, perfect, tree.lengths),
    }


# ----------------------------------------------------------------------------------------------- the loop


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="hub id or folder of a chat model")
    parser.add_argument("--data", required=True, help="prompt rows (train.jsonl)")
    parser.add_argument("--out", required=True, help="adapter folder to write")
    parser.add_argument("--batch", type=positive_int, default=32, help="prompts per optimizer step (default 32)")
    parser.add_argument("--epochs", type=positive_int, default=3, help="default 3")
    parser.add_argument("--lr", type=positive_float, default=2e-4, help="peak learning rate (default 2e-4)")
    parser.add_argument("--branches", type=positive_int, default=1, help="paths per prompt and step (default 1)")
    parser.add_argument("--accumulate", type=positive_int, default=1, help="split a step into so many passes")
    what = "recompute activations in the backward pass: less memory, more time"
    parser.add_argument("--gradient-checkpointing", action="store_true", help=what)
    parser.add_argument("--limit", type=positive_int, help="train on so many prompts only, evenly spaced")
    parser.add_argument("--seed", type=natural, default=0)
    args = parser.parse_args()

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
        prepare(tokenizer, end, row, args.epochs * args.branches, prompt_rng(args.seed, row["id"]))
        for row in tqdm(rows, "prepare", leave=False, disable=not main_process)
    ]
    order = np.random.default_rng(args.seed)
    steps = [
        (epoch, batch)
        for epoch in range(args.epochs)
        for batch in mixed_batches([row["family"] for row in rows], args.batch, order)
    ]
    if min(len(batch) for _, batch in steps) < state.num_processes:
        raise InputError(f"--batch {args.batch} is too small for {state.num_processes} processes")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.01)
    accelerator = Accelerator(mixed_precision="no")
    model, optimizer = accelerator.prepare(model, optimizer)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.03 * len(steps)), len(steps))

    with open(out / "log.jsonl" if main_process else os.devnull, "w") as log:
        for step, (epoch, batch) in enumerate(bar := tqdm(steps, "soft", disable=not main_process), 1):
            start, loss = time.perf_counter(), 0.0
            drawn = slice(epoch * args.branches, (epoch + 1) * args.branches)
            tokens = sum(len(data[i]["prompt"]) + sum(map(len, data[i]["paths"][drawn])) for i in batch)
            share = batch[state.process_index :: state.num_processes]
            for part in np.array_split(share, min(args.accumulate, len(batch) // state.num_processes)):
                prompts = [data[i]["prompt"] for i in part]
                paths = [path for i in part for path in data[i]["paths"][drawn]]
                targets = [target for i in part for target in data[i]["targets"][drawn]]
                completions, children, q = (torch.from_numpy(x).to(device) for x in trie.pad_targets(paths, targets))
                if args.gradient_checkpointing:  # it recomputes layers, which would write into a cache twice
                    logits = trie.complete(model, prompts, completions)
                else:
                    logits = trie.branch(model, trie.prefill(model, prompts), completions)  # (B * K, L, V)
                part_loss = soft_loss(logits, children, q, completions != trie.PAD) * len(part) / len(batch)
                accelerator.backward(part_loss * state.num_processes)  # it averages over the processes
                loss += part_loss.detach()
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            record = {
                "step": step,
                "loss": float(accelerator.reduce(loss)),
                "floor": float(np.mean([data[i]["floor"] for i in batch])),
            }
            record |= {"lr": schedule.get_last_lr()[0], "tokens": tokens, "seconds": time.perf_counter() - start}
            schedule.step()
            log.write(json.dumps(record) + "\n")
            log.flush()
            bar.set_postfix(loss=f"{record['loss']:.3f}", perfect=f"{record['floor']:.3f}")
    trie.save_adapter(accelerator, model, out)


if __name__ == "__main__":
    run(main)
