"""How much faster the kit is than the plain way, as ratios measured within one run.

    make bench                            # the bundled model and its soft adapter
    make bench SHAPE=qwen3-0.6b           # on a GPU: random weights, no download
    python tests/extras/speed.py --rounds 1 --texts 32  # the bundled model, in a minute
    python tests/extras/speed.py --memory               # what fits where, computed by shapes.py

The plain way of training, and of the logit KL, reads whole rows: each answer behind its own copy of
the prompt. The plain way of drawing is transformers' `generate`, 256 answers at a time.

Each stage gets a row: the seconds that the kit and the plain way take (medians; the two take
turns), their ratio, the peak memory on a GPU, and the floor. The floor is the time that the stage's
multiplications alone would take at the rate of one large matrix product: 2 FLOPs for each weight
and each token read, and 2 FLOPs for each weight of the output embedding where logits are needed.
Shared tokens count once, and training takes two such passes. Attention and LoRA, a few per cent,
are left out.

With --shape, every prompt has 45 tokens, and all share the first 20. The script compares
neither with earlier versions of the kit nor with other kits, and machines are too noisy to make
a test of it.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from shapes import PROMPT, SHAPES, memory_table, shape_config
from transformers import AutoModelForCausalLM, GenerationConfig

TINY = Path(__file__).parents[1] / "tiny"
sys.path.insert(0, str(TINY.parents[1]))
import distributions
import sample
import train_hard
import train_soft
import trie

# ---------------------------------------------------------------------------------- the plain ways


def whole_rows(model, prompts: list[list[int]], completions: torch.Tensor) -> torch.Tensor:
    """The logits that trie.branch gives, (B*K, L, V), with each prompt read K times.

    prompts are token ids; completions (B*K, L) has the K completions of a prompt side by side,
    padded with trie.PAD.
    """
    device = completions.device
    branches = len(completions) // len(prompts)
    rows = [prompt for prompt in prompts for _ in range(branches)]

    # Padding on the left makes all completions begin at the same place.
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    real = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    mask = torch.tensor(real, device=device)

    read = completions[:, :-1]  # the last token is predicted, never read
    ids = torch.cat([ids, read.clamp(min=0)], 1)
    mask = torch.cat([mask, torch.ones_like(read)], 1)
    output = model(
        ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=completions.shape[1],
    )
    return output.logits


def generate(model, ids: list[int], ends: list[int], n: int, length: int) -> None:
    """Draw n answers of at most `length` tokens to one prompt."""
    for first in range(0, n, 256):
        batch = torch.tensor([ids] * min(256, n - first), device=model.device)
        model.generate(
            input_ids=batch,
            attention_mask=torch.ones_like(batch),
            do_sample=True,
            temperature=1.0,
            top_k=0,  # subtle: without it, transformers uses the checkpoint's top_k, or 50
            top_p=1.0,
            max_new_tokens=length,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )


# -------------------------------------------------------------------------------------- the stages


class Stage(NamedTuple):
    """A piece of work, done in both ways, and its size."""

    name: str
    kit: Callable[[], object]
    plain: Callable[[], object]
    passes: int  # 2 with a backward pass, which needs no gradients of the frozen weights; else 1
    read: int  # tokens that have to be read, shared ones once
    logits: int  # positions whose logits are needed


TRAINING = (  # name, trainer, answers to each prompt
    ("soft", train_soft, 1),
    ("hard", train_hard, 1),
    ("16 branches", train_hard, 16),
)


def branched_rows(model, prompts: list[list[int]], completions: torch.Tensor) -> torch.Tensor:
    """The kit's way to the same logits as whole_rows: each prompt is read once."""
    context = trie.prefill(model, prompts)
    return trie.branch(model, context, completions)


def training(model, tokenizer, end: int, ask: Callable, n: int) -> Iterator[Stage]:
    """Training steps of n prompts."""
    rows = distributions.make_rows("train")
    rows = [rows[i * len(rows) // n] for i in range(n)]  # evenly spaced, so that families are mixed
    prompts = [ask(row["prompt"]) for row in rows]
    shared = len(os.path.commonprefix(prompts))
    prompt_tokens = shared + sum(len(prompt) - shared for prompt in prompts)

    for name, trainer, draws in TRAINING:
        answers = []
        for row in rows:
            rng = distributions.prompt_rng(0, row["id"])
            answers += trainer.prepare(tokenizer, end, row, draws, rng)["answers"]
        tensors = {key: value.to(model.device) for key, value in trainer.collate(answers).items()}
        answer_tokens = sum(len(answer["path"]) - 1 for answer in answers)

        def step(rows_of: Callable, trainer=trainer, tensors=tensors) -> None:
            model.zero_grad()
            logits = rows_of(model, prompts, tensors["completions"])
            trainer.loss(logits, tensors).mean().backward()

        yield Stage(
            name=f"training step, {name}",
            kit=partial(step, branched_rows),
            plain=partial(step, whole_rows),
            passes=2,
            read=prompt_tokens + answer_tokens,
            logits=n + answer_tokens,
        )


def logit_kl(model, tokenizer, end: int, row: dict, ids: list[int]) -> Iterator[Stage]:
    """The logit KL of a row whose prompt has the token ids `ids`, over 128 paths."""
    texts, probs, _ = distributions.canonical_outputs(row)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    leaves = tree.quantile_leaves((np.arange(128) + 0.5) / 128)
    tokens = int((tree.lengths[leaves] - 1).sum())

    def kit() -> None:
        context = trie.prefill(model, [ids])
        sample.logit_kl(model, context, tree, 128, 512)

    def plain() -> None:
        answers = [{"path": tree.path(leaf), "targets": tree.path_targets(leaf)} for leaf in leaves]
        batch = train_soft.collate(answers)
        tensors = {key: value.to(model.device) for key, value in batch.items()}
        logits = whole_rows(model, [ids], tensors["completions"])
        train_soft.loss(logits, tensors).mean()

    yield Stage("logit KL of 128 paths", kit, plain, 1, len(ids) + tokens, 1 + tokens)


def drawing(
    model, name: str, ids: list[int], ends: list[int], n: int, length: int
) -> Iterator[Stage]:
    """n answers of at most `length` tokens to the prompt `ids`."""
    uniform = np.random.default_rng(0).random((n, length))
    kit = partial(trie.walk, model, [ids], ends, uniform)
    plain = partial(generate, model, ids, ends, n, length)

    # What has to be read besides the prompt is one token for each distinct prefix.
    prefixes = {tuple(path[:i]) for path in kit() for i in range(1, len(path))}
    yield Stage(f"{n} {name}", kit, plain, 1, len(ids) + len(prefixes), 1 + len(prefixes))


def stages(
    model,
    tokenizer,
    end: int,
    ask: Callable[[str], list[int]],
    n: int,
    text_ends: list[int],
    texts: int,
    length: int,
) -> Iterator[Stage]:
    """All stages: training, the logit KL, n draws of a number, and `texts` long answers.

    ask(text) gives the token ids of a prompt; text_ends are the tokens that end a long answer,
    which has at most `length` tokens.

    subtle: this is a generator, and the model's mode must last while the caller runs a stage.
    """
    row = next(row for row in distributions.make_rows("unseen") if row["family"] == "gaussian")
    number_ids = ask(row["prompt"])
    number_ends = model.generation_config.eos_token_id

    model.train()
    yield from training(model, tokenizer, end, ask, 32)
    model.eval()
    yield from logit_kl(model, tokenizer, end, row, number_ids)
    yield from drawing(model, "draws", number_ids, number_ends, n, 32)
    with model.disable_adapter():  # an adapter that was trained on numbers writes no long answers
        yield from drawing(model, "long answers", ask(sample.MCQ), text_ends, texts, length)


# ------------------------------------------------------------------------------------- measurement


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """The seconds that a call takes, and its peak memory in GiB (0 without a GPU).

    With one CPU thread, this is CPU time, which leaves out the time spent waiting for others.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**30

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    function()
    return clock() - start, 0.0


def matmul_rate(model) -> float:
    """FLOPs per second of a large matrix product, on the model's device and in its dtype."""
    size = 8192 if model.device.type == "cuda" else 1024
    square = torch.randn(size, size, device=model.device, dtype=model.dtype)
    product = partial(torch.matmul, square, square)
    return 2 * size**3 / np.median([timed(product)[0] for _ in range(20)])


def weights_used(model) -> tuple[float, int]:
    """How many weights multiply each token that is read, and how many each position with logits."""
    config = model.config
    base = {name: p.numel() for name, p in model.named_parameters() if "lora_" not in name}
    embedding = model.get_input_embeddings().weight.numel()

    # Looking up an input embedding costs nothing; the output embedding makes the logits.
    per_token = sum(base.values()) - embedding * (1 if config.tie_word_embeddings else 2)
    # In a mixture of experts, a token passes through a few of them only.
    used = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_local_experts", 1)
    per_token -= (1 - used) * sum(size for name, size in base.items() if ".experts." in name)
    return per_token, embedding


def measure(model, stages: Iterator[Stage], rounds: int) -> Iterator[dict]:
    """Time every stage in both ways; print and yield a row for each."""
    per_token, per_logit = weights_used(model)
    rate = matmul_rate(model)

    for stage in stages:
        with torch.inference_mode(stage.passes == 1):
            timed(stage.kit)  # the first calls are slower, and do not count
            timed(stage.plain)
            taken = [(timed(stage.kit), timed(stage.plain)) for _ in range(rounds)]
        (seconds, gib), (plain_seconds, plain_gib) = np.median(taken, axis=0).tolist()

        products = per_token * stage.read + per_logit * stage.logits
        floor = float(stage.passes * 2 * products / rate)
        row = {
            "name": stage.name,
            "seconds": seconds,
            "plain_seconds": plain_seconds,
            "ratio": plain_seconds / seconds,
            "floor_seconds": floor,
            "ratio_to_floor": seconds / floor,
            "gib": gib,
            "plain_gib": plain_gib,
        }
        figures = [f"{key} {value:.3g}" for key, value in row.items() if key != "name"]
        print(", ".join([stage.name, *figures]), flush=True)
        yield row


# ------------------------------------------------------------------------ models of random weights


def random_model(config, tokenizer, end: int):
    """A model of a shape, with random weights.

    Such a model would draw any token of its vocabulary. A bias on its logits makes this one draw
    digits and, after about ten of them, end.
    """
    device = trie.processes().device
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config = GenerationConfig(eos_token_id=[end])

    likely = [*tokenizer.convert_tokens_to_ids(list("0123456789")), end]
    bias = torch.zeros(config.vocab_size, dtype=dtype, device=device)
    bias[likely] = 40

    def add_bias(module, inputs, logits):
        return logits + bias

    model.get_output_embeddings().register_forward_hook(add_bias)
    return model


def random_prompt(text: str) -> list[int]:
    """PROMPT token ids, of which the first 20 are the same for every text."""
    common = list(range(100, 120))
    rest = distributions.prompt_rng(0, text).integers(100, 200, PROMPT - len(common))
    return common + rest.tolist()


# ------------------------------------------------------------------------------------- the command


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    add = parser.add_argument
    add("--model", default=str(TINY), help="hub id or folder of a chat model (the bundled one)")
    add("--adapter", help="a calibrated adapter: the draws of an uncalibrated model hardly differ")
    add("--shape", choices=SHAPES, help="in place of a model: random weights in this shape")
    add("--memory", action="store_true", help="print what each shape needs, and stop")
    add("--rounds", type=int, default=3, help="calls of each way (3)")
    add("--texts", type=int, default=256, help="long answers, of at most 256 tokens each (256)")
    add("--out", help="JSONL file to write")
    args = parser.parse_args()

    if args.memory:
        print("\n".join(memory_table()))
        return
    if args.shape and args.adapter:
        parser.error("--shape has random weights, for which there is no adapter")

    if args.shape:
        _, tokenizer, end = trie.load(str(TINY))
        config = shape_config(args.shape)
        model = random_model(config, tokenizer, end)
        ask = random_prompt
        text_ends = [config.vocab_size]  # no token, so that a long answer never ends early
    else:
        model, tokenizer, end = trie.load(args.model, args.adapter)
        ask = partial(trie.chat_ids, tokenizer)
        text_ends = model.generation_config.eos_token_id

    if not args.adapter:
        model = train_soft.add_lora(model, seed=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)

    work = stages(model, tokenizer, end, ask, 1000, text_ends, args.texts, 256)
    rows = list(measure(model, work, args.rounds))

    if args.out:
        machine = {
            "model": args.shape or args.model,
            "device": trie.device_name(),
            "threads": torch.get_num_threads(),
        }
        distributions.write_text(args.out, distributions.to_jsonl(row | machine for row in rows))


if __name__ == "__main__":
    distributions.run(main)
