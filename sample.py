"""Everything that needs a model after training: draws from it, and the exact distance of its probabilities.

    python sample.py numbers --model Qwen/Qwen3-0.6B --prompts data/unseen.jsonl data/ood.jsonl --out base.jsonl
    python sample.py numbers --model tests/tiny --adapter runs/tiny/soft --prompts data/ood.jsonl --n 100 --out s.jsonl

`numbers` writes one row per prompt: the prompt's own row plus
    model, method   the model, and "base" or the name of the adapter's folder
    n, draws        how many answers were drawn, and {answer: count}; an answer cut at --max-tokens ends in "…"
    logit_kl        KL(target || model) at the prefixes of the target's trie, nats per token (logit_kl below)
    logit_kl_floor  what a perfect sampler would score there (trie.kl_floor): it is not 0
    tokens, seconds tokens drawn, the end tokens included, and time for the prompt

Draws are independent, at temperature 1, over the full vocabulary, whatever the checkpoint's
generation_config says: they never go through `generate`. All draws of a prompt walk down together, one row
per *distinct* prefix, so 1000 draws cost what their distinct prefixes cost.

Choice where the paper leaves room: the logit KL is taken over 128 equally probable paths (--paths) where
the published code takes four random ones; a trie with no more leaves than that is covered whole.

What this file does not do: say how good the answers are (metrics.py). Interrupted, it goes on where it
stopped: finished rows wait in FILE.partial, and FILE appears when all are there.
"""

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import trie
from distributions import (
    InputError,
    Parser,
    canonical_outputs,
    perfect_probs,
    positive_int,
    prompt_rng,
    read_jsonl,
    read_prompts,
    run,
    write_jsonl,
)


def choose(logits: torch.Tensor, owner: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """A next token for each of m draws: by inverse CDF, over the full vocabulary, at temperature 1.

    logits (R, V); owner (m,): the row each draw is at, ascending; uniform (m,): each draw's own random
    number in [0, 1). float64, since in float32 the rounding of a 150,000-term sum reaches 10^-5.
    """
    cdf = logits.double().softmax(-1).cumsum(-1)
    counts = torch.bincount(owner, minlength=len(logits))
    column = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
    wanted = torch.zeros(len(logits), int(counts.max()), dtype=cdf.dtype, device=cdf.device)
    wanted[owner, column] = uniform.to(cdf.dtype)
    tokens = torch.searchsorted(cdf, wanted * cdf[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
    return tokens[owner, column]


@torch.inference_mode()
def draw(model, prompt: trie.Prefix, end: int, n: int, max_tokens: int, rng, rows: int) -> Counter:
    """n independent answers to a prompt (a Prefix of one row), as {token path: count}.

    A path ends with the end token, or is cut at max_tokens. At most `rows` prefixes are held at a time:
    a wider level is split, and the later parts are re-read from the prompt when their turn comes.
    Draw j at depth t uses its own random number (j, t), so the result does not depend on `rows`.
    """
    device = prompt.mask.device
    uniform = torch.from_numpy(rng.random((n, max_tokens))).to(device)
    answers = Counter()
    # A group: rows with different prefixes of one length (R, t), the draws at them, and the row of each draw.
    start = torch.zeros(1, 0, dtype=torch.long, device=device)
    groups = [(prompt, start, torch.arange(n, device=device), torch.zeros(n, dtype=torch.long, device=device))]
    while groups:
        state, prefixes, draws, owner = groups.pop()
        if state is None:
            fresh = prompt.fork(torch.zeros(len(prefixes), dtype=torch.long, device=device))
            state, _ = trie.extend(model, fresh, prefixes, keep=1)
        tokens = choose(state.logits, owner, uniform[draws, prefixes.shape[1]])
        # The distinct continuations, ordered by parent row, and which of them each draw takes.
        pairs, taken = torch.unique(owner * state.logits.shape[1] + tokens, return_inverse=True)
        parent, token = pairs // state.logits.shape[1], pairs % state.logits.shape[1]
        longer = torch.cat([prefixes[parent], token[:, None]], 1)
        open_ = (token != end) & (longer.shape[1] < max_tokens)
        counts = torch.bincount(taken, minlength=len(pairs))
        for path, count in zip(longer[~open_].tolist(), counts[~open_].tolist(), strict=True):
            answers[tuple(path)] += count
        survivors = torch.nonzero(open_).flatten()
        parts = survivors.tensor_split(-(-len(survivors) // rows)) if len(survivors) else ()
        for part in reversed(parts):
            place = torch.full_like(pairs, -1).scatter(0, part, torch.arange(len(part), device=device))[taken]
            order = place.argsort(stable=True)[(place < 0).sum() :]  # draws in this part, sorted by their row
            group = (longer[part], draws[order], place[order])
            if part is parts[0]:
                # Rows that all go on alone need no copy of their cache.
                alone = state is not prompt and len(parts) == 1 and len(part) == len(prefixes) == len(parent)
                source = state if alone else state.fork(parent[part])
                step, _ = trie.extend(model, source, token[part][:, None], keep=1)
                groups.append((step, *group))
            else:
                groups.append((None, *group))
    return answers


@torch.inference_mode()
def logit_kl(model, prompt: trie.Prefix, tree: trie.Trie, paths: int, rows: int) -> float:
    """KL(target || model) in nats per token, in expectation over the target's paths.

    At each prefix sum_c q(c) (log q(c) - log p(c)) over its children c, with p over the full vocabulary;
    averaged over the prefixes of a path; then over all leaves by their probability or, where there are more
    than `paths`, over those at the quantiles (i + 1/2) / paths.
    """
    if len(tree.probs) <= paths:
        leaves, weights = np.arange(len(tree.probs)), tree.probs
    else:
        leaves, counts = np.unique(tree.quantile_leaves((np.arange(paths) + 0.5) / paths), return_counts=True)
        weights = counts / paths
    total = 0.0
    for start in range(0, len(leaves), rows):
        part = leaves[start : start + rows]
        arrays = trie.pad_targets([tree.path(leaf) for leaf in part], [tree.path_targets(leaf) for leaf in part])
        completions, tokens, q = (torch.from_numpy(array).to(prompt.mask.device) for array in arrays)
        log_p = trie.branch(model, prompt, completions).float().log_softmax(-1).gather(-1, tokens)  # (R, L, C)
        kl = (torch.xlogy(q, q) - q * log_p).sum(-1)  # (R, L); 0 where the path has ended
        per_path = kl.sum(1).double().cpu().numpy() / tree.lengths[part]
        total += float(per_path @ weights[start : start + rows])
    return total / float(weights.sum())


def numbers(args) -> None:
    prompts = read_prompts(args.prompts)
    tokenizer, device = trie.load_tokenizer(args.model), trie.default_device()
    end = trie.end_token(tokenizer)
    model = trie.load_model(args.model, args.adapter, device)
    out = Path(args.out)
    partial, done = resume(out, args, device)
    method = Path(args.adapter).name if args.adapter else "base"
    with open(partial, "a", encoding="utf-8") as file:
        for row in tqdm(prompts[len(done) :], f"numbers, {method}", initial=len(done), total=len(prompts)):
            start = time.perf_counter()
            texts, probs = canonical_outputs(row["family"], row["params"])
            tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
            with torch.inference_mode():
                prompt = trie.prefill(model, [trie.chat_ids(tokenizer, row["prompt"])])
            paths = draw(model, prompt, end, args.n, args.max_tokens, prompt_rng(args.seed, row["id"]), args.rows)
            draws = Counter()
            for path, count in paths.items():
                finished = path[-1] == end
                draws[trie.decode(tokenizer, path[:-1] if finished else path) + "…" * (not finished)] += count
            kl = logit_kl(model, prompt, tree, args.paths, args.rows)
            floor = trie.kl_floor(tree.probs, perfect_probs(row["family"], row["params"])[tree.order], tree.lengths)
            result = {"model": args.model, "method": method, "n": args.n, "draws": dict(sorted(draws.items()))}
            result |= {"logit_kl": kl, "logit_kl_floor": floor}
            result |= {"tokens": sum(len(path) * count for path, count in paths.items())}
            result |= {"seconds": round(time.perf_counter() - start, 3)}
            file.write(json.dumps(row | result, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
    write_jsonl(out, read_jsonl(partial))
    partial.unlink()


def resume(out: Path, args, device) -> tuple[Path, list[dict]]:
    """Start FILE.run.json and FILE.partial, or take up a partial file of the same run. Returns its finished rows."""
    partial, record = out.with_name(out.name + ".partial"), out.with_name(out.name + ".run.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    weights = [Path(args.adapter) / "adapter_model.safetensors"] if args.adapter else []
    inputs = trie.digests([*args.prompts, *weights])
    done = []
    if partial.exists() and partial.stat().st_size and record.exists():
        before = json.loads(record.read_text())
        if (before["args"], before["inputs"]) != (vars(args), inputs):
            raise InputError(f"{partial} holds rows of another run (options or inputs differ); remove it to start anew")
        whole = partial.read_bytes().rpartition(b"\n")
        if whole[2]:  # a line cut off when the run was killed
            partial.write_bytes(whole[0] + whole[1])
        done = read_jsonl(partial) if whole[0] else []
    else:
        partial.write_bytes(b"")
        trie.write_run(record, args, device, inputs)
    return partial, done


def main() -> None:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="numbers")
    sub = commands.add_parser("numbers", help="draws and logit KL for number prompts")
    sub.add_argument("--model", required=True, help="hub id or folder of a chat model")
    sub.add_argument("--adapter", help="PEFT adapter folder; its name becomes the method (default: the base model)")
    sub.add_argument(
        "--prompts", required=True, nargs="+", metavar="FILE", help="prompt rows (unseen.jsonl, ood.jsonl)"
    )
    sub.add_argument("--out", required=True, help="JSONL file to write")
    sub.add_argument("--n", type=positive_int, default=1000, help="draws per prompt (default 1000)")
    sub.add_argument("--paths", type=positive_int, default=128, help="paths for the logit KL (default 128)")
    sub.add_argument("--max-tokens", type=positive_int, default=32, help="cut an answer here (default 32)")
    sub.add_argument("--rows", type=positive_int, default=1024, help="most branches in one forward pass (default 1024)")
    sub.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    {"numbers": numbers}[args.command](args)


if __name__ == "__main__":
    run(main)
