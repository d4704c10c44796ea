"""How much faster than the plain way, in ratios measured inside one run. Never a test: machines are noisy.

    make bench                                                                # the embedded model and its soft adapter
    python tests/bench.py --model tests/tiny --adapter runs/tiny/soft --out bench.jsonl

One JSONL row per comparison: seconds of the kit, seconds of the plain way (median of the rounds, taken in turn),
their ratio, and the ratio or the seconds that the kit promises.
"""

import argparse
import resource
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import sample
import train_hard
import train_soft
import trie
from distributions import canonical_outputs, make_rows, prompt_rng, write_jsonl

CONTINUOUS, DISCRETE = "unseen-gaussian-000", "ood-poisson-001"


def compare(name: str, kit, plain, promise: float, rounds: int) -> dict:
    """Time two functions in turn, after one uncounted call of each."""
    times = {kit: [], plain: []}
    for counted in range(-1, rounds):
        for function, taken in times.items():
            start = time.perf_counter()
            function()
            if counted >= 0:
                taken.append(time.perf_counter() - start)
    seconds, plain_seconds = (float(np.median(taken)) for taken in times.values())
    return {"name": name, "seconds": seconds, "plain_seconds": plain_seconds,
            "ratio": plain_seconds / seconds, "promised_ratio": promise}  # fmt: skip


def preparation(tokenizer, end: int) -> list[dict]:
    """All training prompts: processor time, so that a busy neighbour does not count, and memory above the libraries."""
    rows, out = make_rows("train"), []
    for name, module, draws, promise in (("hard", train_hard, 32, 15), ("soft", train_soft, 3, 20)):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        kept = [module.prepare(tokenizer, end, row, draws, prompt_rng(0, row["id"])) for row in rows]
        seconds = time.process_time() - start
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20  # ru_maxrss is in KiB
        out.append({"name": f"prepare {name}, {len(kept)} prompts", "seconds": seconds, "promised_seconds": promise,
                    "gib": memory, "promised_gib": 0.6})  # fmt: skip
    some, start = rows[::50], time.process_time()
    for row in some:  # the plain way: a dictionary of prefixes per prompt
        texts, probs = canonical_outputs(row["family"], row["params"])
        children = defaultdict(Counter)
        for text, p in zip(texts, probs, strict=True):
            path = (*tokenizer(text, add_special_tokens=False)["input_ids"], end)
            for i, token in enumerate(path):
                children[path[:i]][token] += p
    plain = (time.process_time() - start) * len(rows) / len(some)
    out[-1] |= {"plain_seconds": plain, "ratio": plain / out[-1]["seconds"]}
    return out


def training(model, tokenizer, end: int, rounds: int) -> dict:
    """Loss and gradient of 8 prompts with 16 completions each: branches against separate rows."""
    rows = make_rows("train")[::250]
    data = [train_hard.prepare(tokenizer, end, row, 16, prompt_rng(0, row["id"])) for row in rows]
    prompts = [item["prompt"] for item in data]
    completions = torch.from_numpy(train_hard.stack([item["completions"] for item in data])).long().to(model.device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = {}

    def step(name, prompts):
        model.zero_grad()
        loss = train_hard.hard_loss(trie.branch(model, trie.prefill(model, prompts), completions), completions)
        loss.backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in parameters])

    def separate():
        # one row of prompt + completion each, in one plain forward pass without a cache; logits of completions only
        width = max(map(len, prompts))
        rows = [p for p in prompts for _ in range(16)]
        ids = torch.tensor([[0] * (width - len(p)) + p for p in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in rows], device=model.device)
        inputs = torch.cat([ids, completions[:, :-1].clamp(min=0)], 1)
        mask = torch.cat([mask, torch.ones_like(completions[:, :-1])], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model.zero_grad()
        keep = completions.shape[1]
        out = model(input_ids=inputs, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep)
        train_hard.hard_loss(out.logits, completions).backward()
        gradients["separate"] = torch.cat([p.grad.flatten() for p in parameters])

    row = compare("train 16 branches", lambda: step("branched", prompts), separate, 5, rounds)
    difference = (gradients["branched"] - gradients["separate"]).norm() / gradients["separate"].norm()
    return row | {"gradient_difference": float(difference)}


@torch.inference_mode()
def draws(model, tokenizer, end: int, row: dict, promise: float, rounds: int) -> dict:
    """1000 draws: the shared-prefix walk against `generate` at batch 256."""
    ids = trie.chat_ids(tokenizer, row["prompt"])

    def kit():
        sample.draw(model, trie.prefill(model, [ids]), end, 1000, 32, np.random.default_rng(0), 1024)

    def plain():
        done = 0
        while done < 1000:
            batch = torch.tensor([ids] * min(256, 1000 - done), device=model.device)
            # top_k=0: left out, transformers would silently take the checkpoint's, or 50
            done += len(model.generate(
                batch, attention_mask=torch.ones_like(batch), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=32, eos_token_id=end, pad_token_id=end,
            ))  # fmt: skip

    return compare(f"1000 draws, {row['family']}", kit, plain, promise, rounds)


@torch.inference_mode()
def scoring(model, tokenizer, end: int, row: dict, rounds: int) -> dict:
    """The logit KL of 128 paths: branches against one full row of prompt + path each."""
    ids = trie.chat_ids(tokenizer, row["prompt"])
    texts, probs = canonical_outputs(row["family"], row["params"])
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    leaves = tree.quantile_leaves((np.arange(128) + 0.5) / 128)
    values = {}

    def kit():
        values["branched"] = sample.logit_kl(model, trie.prefill(model, [ids]), tree, 128, 256)

    def plain():
        arrays = trie.pad_targets([tree.path(leaf) for leaf in leaves], [tree.path_targets(leaf) for leaf in leaves])
        completions, tokens, q = (torch.from_numpy(array).to(model.device) for array in arrays)
        inputs = torch.cat([torch.tensor([ids] * 128, device=model.device), completions[:, :-1].clamp(min=0)], 1)
        out = model(input_ids=inputs, use_cache=False, logits_to_keep=completions.shape[1])
        log_p = out.logits.float().log_softmax(-1).gather(-1, tokens)
        per_path = (torch.xlogy(q, q) - q * log_p).sum((1, 2)).cpu().numpy() / tree.lengths[leaves]
        values["full rows"] = float(per_path.mean())

    result = compare("logit KL of 128 paths", kit, plain, 5, rounds)
    return result | {"difference": abs(values["branched"] - values["full rows"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tests/tiny")
    parser.add_argument("--adapter", help="a calibrated adapter: its draws differ, a collapsed model's hardly do")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    tokenizer = trie.load_tokenizer(args.model)
    end = trie.end_token(tokenizer)
    rows = preparation(tokenizer, end)
    model = trie.load_model(args.model, args.adapter)
    by_id = {row["id"]: row for row in make_rows("unseen") + make_rows("ood")}
    rows.append(draws(model, tokenizer, end, by_id[CONTINUOUS], 8, args.rounds))
    rows.append(draws(model, tokenizer, end, by_id[DISCRETE], 25, args.rounds))
    rows.append(scoring(model, tokenizer, end, by_id[CONTINUOUS], args.rounds))
    for parameter in model.parameters():
        parameter.requires_grad_(args.adapter is None)
    if args.adapter:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    rows.append(training(model, tokenizer, end, args.rounds))
    shared = {"device": str(model.device), "threads": torch.get_num_threads(), "model": args.model}
    for row in rows:
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    write_jsonl(args.out, [row | shared for row in rows])


if __name__ == "__main__":
    main()
