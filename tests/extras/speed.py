"""How much faster than the plain way: ratios measured inside one run. Never a test, since machines are noisy.

    make bench                                                               # the embedded model and its soft adapter
    python tests/extras/speed.py --model tests/tiny --rounds 1 --texts 32                    # a minute
    make bench SHAPE=qwen3-0.6b                                              # a GPU, random weights, no download
    python tests/extras/speed.py --memory                                    # what fits where, computed (shapes.py)

The plain ways: for training and the logit KL whole rows, a prompt and an answer each; for draws and long answers
`generate` at batch 256. Of each stage: seconds of the kit and of the plain way (medians, taken in turn), their ratio,
peak memory on a GPU, and the floor: what its FLOPs alone would take at the rate of one large matrix product. These are
2 for each weight and token read (what is shared is read once; training takes two such passes) and the logits that are
needed; attention and LoRA, a few per cent, are left out. A shape's prompts are 45 tokens long, 20 of them common.

What this file does not do: compare with an earlier version of the kit, or with another one.
"""

import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from shapes import PROMPT, SHAPES, memory_table, shape_config
from transformers import AutoModelForCausalLM, GenerationConfig

TINY = Path(__file__).parents[1] / "tiny"
sys.path.insert(0, str(TINY.parents[1]))
import sample
import train_hard
import train_soft
import trie
from distributions import (
    Parser,
    canonical_outputs,
    make_rows,
    prompt_rng,
    run,
    to_jsonl,
    write_text,
)


def whole_rows(model, prompts: list[list[int]], completions: torch.Tensor) -> torch.Tensor:
    """The logits of trie.branch (B*K, L, V), the plain way: each prompt read with each of its completions."""
    rows = [prompt for prompt in prompts for _ in range(len(completions) // len(prompts))]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=completions.device)
    mask = torch.tensor(
        [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=completions.device
    )
    ids = torch.cat([ids, completions[:, :-1].clamp(min=0)], 1)
    mask = torch.cat([mask, torch.ones_like(completions[:, :-1])], 1)
    positions, keep = (mask.cumsum(1) - 1).clamp(min=0), completions.shape[1]
    return model(
        ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
    ).logits


def generate(model, ids: list[int], ends: list[int], n: int, length: int) -> None:
    """n answers to a prompt, the plain way."""
    for first in range(0, n, 256):
        batch = torch.tensor([ids] * min(256, n - first), device=model.device)
        # top_k=0: left out, transformers would silently take the checkpoint's, or 50
        model.generate(
            input_ids=batch, attention_mask=torch.ones_like(batch), do_sample=True, temperature=1.0, top_k=0,
            top_p=1.0, max_new_tokens=length, eos_token_id=ends, pad_token_id=ends[0],
        )  # fmt: skip


def training(model, tokenizer, end: int, ask, n: int) -> Iterator[tuple]:
    """Steps of n prompts: (name, the kit's way, the plain way, passes, tokens read, logits needed)."""
    rows = make_rows("train")
    rows = [rows[i * len(rows) // n] for i in range(n)]
    prompts = [ask(row["prompt"]) for row in rows]
    shared = len(os.path.commonprefix(prompts))
    for name, module, draws in (
        ("soft", train_soft, 1),
        ("hard", train_hard, 1),
        ("16 branches", train_hard, 16),
    ):
        data = [
            module.prepare(tokenizer, end, row, draws, prompt_rng(0, row["id"])) for row in rows
        ]
        answers = [answer for item in data for answer in item["answers"]]
        tensors = {key: tensor.to(model.device) for key, tensor in module.collate(answers).items()}

        def step(logits, module=module, tensors=tensors):
            model.zero_grad()
            module.loss(logits(tensors["completions"]), tensors).mean().backward()

        branches = lambda completions: trie.branch(model, trie.prefill(model, prompts), completions)
        tokens = sum(len(answer["path"]) - 1 for answer in answers)
        read = shared + sum(len(prompt) - shared for prompt in prompts) + tokens
        kit, plain = partial(step, branches), partial(step, partial(whole_rows, model, prompts))
        yield f"training step, {name}", kit, plain, 2, read, n + tokens


def logit_kl(model, tokenizer, end: int, row: dict, ids: list[int]) -> Iterator[tuple]:
    texts, probs, _ = canonical_outputs(row)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    leaves = tree.quantile_leaves((np.arange(128) + 0.5) / 128)

    def plain():
        answers = [{"path": tree.path(leaf), "targets": tree.path_targets(leaf)} for leaf in leaves]
        tensors = {
            key: tensor.to(model.device) for key, tensor in train_soft.collate(answers).items()
        }
        train_soft.loss(whole_rows(model, [ids], tensors["completions"]), tensors).mean()

    tokens = int((tree.lengths[leaves] - 1).sum())
    kit = lambda: sample.logit_kl(model, trie.prefill(model, [ids]), tree, 128, 512)
    yield "logit KL of 128 paths", kit, plain, 1, len(ids) + tokens, 1 + tokens


def drawing(
    model, name: str, ids: list[int], ends: list[int], n: int, length: int
) -> Iterator[tuple]:
    kit = partial(trie.walk, model, [ids], ends, np.random.default_rng(0).random((n, length)))
    read = len({tuple(path[:i]) for path in kit() for i in range(1, len(path))})
    yield (
        f"{n} {name}",
        kit,
        partial(generate, model, ids, ends, n, length),
        1,
        len(ids) + read,
        1 + read,
    )


def stages(
    model, tokenizer, end: int, ask, n: int, text_ends: list[int], texts: int, length: int
) -> Iterator[tuple]:
    """All stages; ask(text): the token ids of a prompt; text_ends: what ends a long answer."""
    row = next(row for row in make_rows("unseen") if row["family"] == "gaussian")
    model.train()
    yield from training(model, tokenizer, end, ask, 32)
    model.eval()
    yield from logit_kl(model, tokenizer, end, row, ask(row["prompt"]))
    yield from drawing(
        model, "draws", ask(row["prompt"]), model.generation_config.eos_token_id, n, 32
    )
    with model.disable_adapter():  # one that was trained on numbers writes no long answers
        yield from drawing(model, "long answers", ask(sample.MCQ), text_ends, texts, length)


def timed(function) -> tuple[float, float]:
    """Seconds of a call (of one CPU thread those of work, since others keep it waiting) and peak GiB on a GPU, else 0."""
    gpu = torch.cuda.is_available()
    clock = time.process_time if not gpu and torch.get_num_threads() == 1 else time.perf_counter
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    start = clock()
    function()
    if gpu:
        torch.cuda.synchronize()
    return clock() - start, torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0


def measure(model, stages: Iterator[tuple], rounds: int) -> Iterator[dict]:
    """A row for each stage, printed as well."""
    embedding = model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    body -= embedding * (1 if model.config.tie_word_embeddings else 2)
    idle = 1 - getattr(model.config, "num_experts_per_tok", 1) / getattr(
        model.config, "num_local_experts", 1
    )
    body -= idle * sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    size = 8192 if model.device.type == "cuda" else 1024
    square = torch.randn(size, size, device=model.device, dtype=model.dtype)
    rate = 2 * size**3 / np.median([timed(lambda: square @ square)[0] for _ in range(20)])

    for name, kit, plain, passes, read, logits in stages:
        with torch.inference_mode(passes == 1):
            taken = [[timed(kit), timed(plain)] for _ in range(rounds + 1)][
                1:
            ]  # after one uncounted call of each
        (seconds, gib), (plain_seconds, plain_gib) = np.median(taken, axis=0).tolist()
        floor = float(passes * 2 * (body * read + embedding * logits) / rate)
        row = {
            "name": name,
            "seconds": seconds,
            "plain_seconds": plain_seconds,
            "ratio": plain_seconds / seconds,
        }
        row |= {
            "floor_seconds": floor,
            "ratio_to_floor": seconds / floor,
            "gib": gib,
            "plain_gib": plain_gib,
        }
        print(
            ", ".join(
                f"{key} {value:.3g}" if key != "name" else value for key, value in row.items()
            ),
            flush=True,
        )
        yield row


def random_model(config, tokenizer, end: int):
    """A model of a shape. A random one would draw any token: this one draws digits, and ends after about ten."""
    device = trie.processes().device
    with torch.device(device):
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config = GenerationConfig(eos_token_id=[end])
    bias = torch.zeros(config.vocab_size, dtype=dtype, device=device)
    bias[[*tokenizer.convert_tokens_to_ids(list("0123456789")), end]] = 40
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: logits + bias
    )
    return model


def random_prompt(text: str) -> list[int]:
    return [*range(100, 120), *prompt_rng(0, text).integers(100, 200, PROMPT - 20).tolist()]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--model",
        default=str(TINY),
        help="hub id or folder of a chat model (default: the embedded)",
    )
    parser.add_argument(
        "--adapter", help="a calibrated adapter: its draws differ, a collapsed model's hardly do"
    )
    parser.add_argument(
        "--shape", choices=SHAPES, help="measure a random model of this size in its place"
    )
    parser.add_argument(
        "--memory", action="store_const", const="table", help="print what each shape needs, and end"
    )
    parser.add_argument("--rounds", type=int, default=3, help="calls of each way (default 3)")
    parser.add_argument(
        "--texts", type=int, default=256, help="long answers, of at most 256 tokens (default 256)"
    )
    parser.add_argument("--out", help="JSONL file to write")
    args = parser.parse_args()
    if args.memory:
        return print("\n".join(memory_table()))

    if args.shape:
        _, tokenizer, end = trie.load(str(TINY))
        config, ask = shape_config(args.shape), random_prompt
        model, text_ends = (
            random_model(config, tokenizer, end),
            [config.vocab_size],
        )  # it never ends a long answer
    else:
        model, tokenizer, end = trie.load(args.model, args.adapter)
        ask, text_ends = partial(trie.chat_ids, tokenizer), model.generation_config.eos_token_id
    model = model if args.adapter else trie.add_lora(model, seed=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)

    rows = list(
        measure(
            model, stages(model, tokenizer, end, ask, 1000, text_ends, args.texts, 256), args.rounds
        )
    )
    if args.out:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        shared = {
            "model": args.shape or args.model,
            "device": device,
            "threads": torch.get_num_threads(),
        }
        write_text(args.out, to_jsonl(row | shared for row in rows))


if __name__ == "__main__":
    run(main)
