"""How much faster than the plain way, in ratios measured inside one run. Never a test: machines are noisy.

    make bench                                                                # the embedded model and its soft adapter
    python tests/bench.py --model tests/tiny --adapter runs/tiny/soft --out bench.jsonl
    python tests/bench.py --shape qwen3-0.6b --out shape.jsonl                # a GPU, random weights, no download
    python tests/bench.py --memory                                            # what fits where, computed

One JSONL row per comparison: seconds of the kit, seconds of the plain way (median of the rounds, taken in turn),
their ratio, and the ratio or the seconds that the kit promises.

--shape: one row per stage of a model of that size: seconds, tokens/s, peak memory, and the ratio to the FLOP floor, the
time that its FLOPs alone would take at the rate of one large matrix product, measured in the same run. The FLOPs are
2 per weight and real token (padding is not counted), with the logits that a stage needs; attention and LoRA, a few per
cent here, are left out. Training through frozen weights takes two such passes. Prompts are 45 tokens long, as
Qwen3's are, and numbers one token per character.
"""

import argparse
import resource
import sys
import time
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GptOssConfig, LlamaConfig, Qwen3Config

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

    def step(name, answer):
        model.zero_grad()
        train_hard.hard_loss(answer(), completions).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in parameters])

    branched = lambda: trie.branch(model, trie.prefill(model, prompts), completions)
    separate = lambda: trie.complete(model, prompts, completions)
    row = compare(
        "train 16 branches", lambda: step("branched", branched), lambda: step("separate", separate), 5, rounds
    )
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


PROMPT, END = 45, 10
SHAPES = {  # vocabulary, width, layers, heads, key-value heads, head size, feed-forward width, tied embeddings
    "qwen3-0.6b": (Qwen3Config, 151936, 1024, 28, 16, 8, 128, 3072, True),
    "qwen3-1.7b": (Qwen3Config, 151936, 2048, 28, 16, 8, 128, 6144, True),
    "qwen3-4b": (Qwen3Config, 151936, 2560, 36, 32, 8, 128, 9728, True),
    "qwen3-8b": (Qwen3Config, 151936, 4096, 36, 32, 8, 128, 12288, False),
    "qwen3-14b": (Qwen3Config, 151936, 5120, 40, 40, 8, 128, 17408, False),
    "llama-3.2-1b": (LlamaConfig, 128256, 2048, 16, 32, 8, 64, 8192, True),
    "llama-3.2-3b": (LlamaConfig, 128256, 3072, 28, 24, 8, 128, 8192, True),
    "gemma-3-1b": (Gemma3TextConfig, 262144, 1152, 26, 4, 1, 256, 6912, True),
    "gemma-3-4b": (Gemma3TextConfig, 262208, 2560, 34, 8, 4, 256, 10240, True),
    "gemma-3-12b": (Gemma3TextConfig, 262208, 3840, 48, 16, 8, 256, 15360, True),
    "gemma-3-27b": (Gemma3TextConfig, 262208, 5376, 62, 32, 16, 128, 21504, True),
    "gpt-oss-20b": (partial(GptOssConfig, num_local_experts=32), 201088, 2880, 24, 64, 8, 64, 2880, False),
}


def shape_config(name: str):
    config, vocabulary, width, layers, heads, groups, head, forward, tied = SHAPES[name]
    return config(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, head_dim=head, intermediate_size=forward, tie_word_embeddings=tied,
    )  # fmt: skip


def tree_of(row: dict) -> trie.Trie:
    texts, probs = canonical_outputs(row["family"], row["params"])
    tokens = np.full((len(texts), max(map(len, texts)) + 1), trie.PAD, np.int32)
    for line, text in zip(tokens, texts, strict=True):
        line[: len(text) + 1] = [*map(ord, text), END]
    return trie.Trie(tokens, probs)


def timed(function, rounds: int) -> tuple[float, float]:
    """Median seconds of a call, after one uncounted, and the peak memory in GiB (of the GPU; on a CPU the process's)."""
    gpu, times = torch.cuda.is_available(), []
    for _ in range(rounds + 1):
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        function()
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    return float(np.median(times[1:])), peak / 2**30


def stages(config, rounds: int) -> list[dict]:
    """Every stage of a random model, against its FLOP floor."""
    device = trie.default_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = 8192 if device.type == "cuda" else 1024
    square = torch.randn(size, size, device=device, dtype=dtype)
    rate = 2 * size**3 / timed(lambda: square @ square, 20)[0]

    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    embedding = config.vocab_size * config.hidden_size
    body = sum(p.numel() for p in model.parameters()) - embedding * (1 if config.tie_word_embeddings else 2)
    idle = 1 - getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_local_experts", 1)
    body -= idle * sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    # A random model would draw any token: this one draws digits, about eight, as a calibrated one does.
    bias = torch.zeros(config.vocab_size, dtype=dtype, device=device)
    bias[[*range(48, 58), END]] = 40
    hook = model.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: logits + bias)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=targets)).train()
    rng, out = np.random.default_rng(0), []

    def stage(name: str, function, read: int, logits: int, passes: int) -> None:
        """read: tokens that go through the body; logits: positions whose logits are needed."""
        seconds, gib = timed(function, rounds)
        floor = passes * 2 * (body * read + embedding * logits) / rate
        out.append({"name": name, "seconds": seconds, "tokens_per_second": read / seconds, "gib": gib,
                    "floor_seconds": floor, "ratio_to_floor": seconds / floor})  # fmt: skip

    prompts = rng.integers(100, 1000, (32, PROMPT)).tolist()
    trees = [tree_of(row) for row in make_rows("train")[::63][:32]]

    def train(loss) -> None:
        model.zero_grad()
        loss().backward()

    for name, branches in (("soft", 1), ("hard", 1), ("hard, 16 branches", 16)):
        leaves = [(tree, leaf) for tree in trees for leaf in tree.quantile_leaves(rng.random(branches))]
        paths = [tree.path(leaf) for tree, leaf in leaves]
        arrays = trie.pad_targets(paths, [tree.path_targets(leaf) for tree, leaf in leaves])
        completions, children, q = (torch.from_numpy(x).to(device) for x in arrays)
        answer = lambda completions=completions: trie.branch(model, trie.prefill(model, prompts), completions)
        soft = lambda c=completions, t=children, q=q, answer=answer: train_soft.soft_loss(answer(), t, q, c != trie.PAD)
        hard = lambda c=completions, answer=answer: train_hard.hard_loss(answer(), c)
        objective = soft if name == "soft" else hard
        tokens = sum(map(len, paths))
        read, logits = 32 * PROMPT + tokens - len(paths), 32 + tokens - len(paths)
        stage(name, lambda objective=objective: train(objective), read, logits, passes=2)

    model.eval()
    with torch.inference_mode():
        prompt = trie.prefill(model, prompts[:1])
        drawn = lambda: sample.draw(model, prompt, END, 1000, 32, np.random.default_rng(0), 1024)
        prefixes = {path[:i] for path in drawn() for i in range(1, len(path))}
        stage("1000 draws", drawn, len(prefixes), len(prefixes), passes=1)
        tree = tree_of(next(row for row in make_rows("unseen") if row["id"] == CONTINUOUS))
        tokens = sum(tree.lengths[tree.quantile_leaves((np.arange(128) + 0.5) / 128)])
        scored = lambda: sample.logit_kl(model, prompt, tree, 128, 1024)
        stage("logit KL of 128 paths", scored, int(tokens) - 128, int(tokens) - 128, passes=1)
    hook.remove()
    return [row | {"tera_flops_of_a_matrix_product": rate / 1e12} for row in out]


def memory(name: str) -> dict:
    """What a model needs, in GB of 10^9 bytes: computed from its shape, not measured.

    weights     bfloat16; of gpt-oss with its experts dequantized
    adapter     LoRA r 16 on q/k/v/o: weights, gradients and AdamW's two moments in float32
    soft, hard  one step of 32 prompts with 1 path, or with 16 draws each: what the backward pass needs of each token
                and layer, and its logits in bfloat16, float32 and as a gradient; checkpointed, only each layer's input
    draws       1024 rows at a time (--rows): keys and values of prompt and answer, and logits in bfloat16 and float64
    """
    config = shape_config(name)
    _, vocabulary, width, layers, heads, groups, head, forward, _ = SHAPES[name]
    with torch.device("meta"):
        weights = 2 * sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    lora = 16 * layers * (2 * (width + heads * head) + 2 * (width + groups * head))
    experts = getattr(config, "num_experts_per_tok", 1)
    # Bytes of a token and layer. Two norms in float32 beside their outputs, the residual stream, attention, the
    # feed-forward's four vectors; LoRA's float32 copy of its four inputs, what dropout leaves of it, and the mask.
    kept = 2 * (8 * width + 3 * heads * head + 2 * groups * head + 4 * experts * forward)
    kept += 9 * (3 * width + heads * head)
    answer = 11  # tokens of the longest numbers, one per character
    copied = 2 * 2 * layers * groups * head * 32 * (PROMPT + answer)  # keys and values, repeated for each branch
    step = lambda k: (
        layers * kept * 32 * (PROMPT + k * answer)
        + (k > 1) * k * copied
        + 32 * k * answer * vocabulary * (2 + 4 + 4 + 2)
    )
    thin = 2 * layers * width * 32 * (PROMPT + answer) + 32 * answer * vocabulary * (2 + 4 + 4 + 2)
    rows = 1024 * (2 * 2 * layers * groups * head * (PROMPT + answer) + vocabulary * (2 + 8 + 8))
    fixed = weights + 16 * lora
    needs = {"weights": weights, "adapter": 16 * lora, "soft": fixed + step(1), "hard, 16 draws": fixed + step(16)}
    needs |= {"soft, checkpointed": fixed + thin + kept * 32 * (PROMPT + answer), "draws": weights + rows}
    return {"model": name} | {key: value / 1e9 for key, value in needs.items()}


def memory_table() -> list[str]:
    rows = [memory(name) for name in SHAPES]
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    return lines + ["| " + " | ".join(v if k == "model" else f"{v:.1f}" for k, v in row.items()) + " |" for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tests/tiny")
    parser.add_argument("--adapter", help="a calibrated adapter: its draws differ, a collapsed model's hardly do")
    parser.add_argument("--shape", choices=SHAPES, help="measure every stage of a random model of this size instead")
    parser.add_argument("--memory", action="store_true", help="print what each shape needs, computed, and end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="JSONL file to write")
    args = parser.parse_args()
    if args.memory:
        return print("\n".join(memory_table()))
    if args.shape:
        return report(stages(shape_config(args.shape), args.rounds), args.shape, args.out)
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
    report(rows, args.model, args.out)


def report(rows: list[dict], model: str, out: str) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    shared = {"device": device, "threads": torch.get_num_threads(), "model": model}
    for row in rows:
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if out:
        write_jsonl(out, [row | shared for row in rows])


if __name__ == "__main__":
    main()
