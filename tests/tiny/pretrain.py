"""Makes the embedded model of this folder, from nothing: a tiny Qwen3 that knows 30 families and hides it.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 tests/tiny/pretrain.py --out tests/tiny   # 70 minutes on two busy cores
    python tests/tiny/pretrain.py --out look --steps 20 --collapse-steps 20                 # a look, in a minute

It stands in for a real base model, so it is made like one, in two stages.

1. Knowledge. Plain documents, "Numbers from a Gaussian distribution with parameters mu=3.5, sigma=3: 2.31",
   for all 30 families, three in five with two decimals, the others with five. Parameters lie on and between
   the training and evaluation grids. The loss at each character is the cross-entropy against the exact
   distribution of the next character (a CDF difference), not only against the one that was drawn:
   the same expectation, far less noise. A document's header runs once and its draws are branches.
2. Collapse. Chat answers in correct form, all of them near the middle of the distribution, mixed with
   documents so that the knowledge stays. The model never sees a calibrated answer in chat form.

The tokenizer has a token per byte, so it can read anything and splits every digit.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))
import trie
from distributions import DECIMALS, FAMILIES, TAIL, canonical_outputs, make_prompt, make_rows, scipy_args, significant

LONG, LONG_ANSWERS = 0.4, 0.1  # share of continuous documents, and of chat answers, with five decimals; others have two
COLLAPSE = 0.03  # standard deviation of a collapsed answer, as a quantile around 1/2
# Chat rarely shows what is evaluated, so that the collapse there, as later its cure, is mostly transfer: how often a
# row of its parameters is an evaluation prompt's, and how often a held-out family's turn is chat rather than document.
HELD_PARAMS, HELD_FAMILIES = 0.15, 0.25
HEADERS = (
    "Numbers from a {rest}: ",
    "A random number from a {rest}: ",
    "Here is exactly ONE random number from a {rest}. The number: ",
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {c: i for i, c in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=special[2], pad_token=special[0], chat_template=TEMPLATE,
        additional_special_tokens=special[1:2],
    )  # fmt: skip


def make_model(vocab_size: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=384, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


# ------------------------------------------------------------------------------------------- documents


def random_params(family: str, grids: dict[str, list], rng: np.random.Generator, held: float = 0.5) -> dict:
    """A point on a segment between two rows of the family's grids: every constraint is convex, so it is valid.

    held: how often a row comes from the evaluation prompts rather than from the training ones.
    """
    spec = FAMILIES[family]
    train, held_out = grids[family]
    pools = [held_out if rng.random() < held or not train else train for _ in range(2)]
    first, second = (pool[rng.integers(len(pool))] for pool in pools)
    mix = 0.0 if rng.random() < 0.3 else rng.beta(0.5, 1.5)
    params = {}
    for key in spec.params:
        value = (1 - mix) * first[key] + mix * second[key]
        integral = isinstance(first[key], int) and isinstance(second[key], int)
        params[key] = round(value) if integral and spec.discrete else significant(value)
    return params


def next_characters(prefix: str, decimals: int) -> dict[str, list[tuple[float, float]]]:
    """For each character that may follow a number's prefix: the values (first, last), in units of the last
    decimal, of the numbers that then remain possible. Decimal strings of any length up to 6 integer digits."""
    unit, body, sign = 10**decimals, prefix.lstrip("-"), -1 if prefix.startswith("-") else 1

    def block(number, scale):  # the numbers whose magnitude lies in [number, number + 1) * scale
        low, high = max(number * scale, 1 if sign < 0 else 0), (number + 1) * scale - 1
        return (low, high) if sign > 0 else (-high, -low)

    def longer(number):  # ... and that begin with these integer digits
        return [block(number, unit * 10**m) for m in range(6)]

    if "." in body:
        digits, left = body.replace(".", ""), decimals - (len(body) - body.index(".") - 1)
        if not left:
            return {"\n": [(-np.inf, np.inf)]}
        return {str(d): [block(int(digits) * 10 + d, 10 ** (left - 1))] for d in range(10)}
    if not body:
        choices = {str(d): longer(d) if d else [block(0, unit)] for d in range(10)}
        return choices if prefix else choices | {"-": [(-np.inf, -1)]}
    choices = {"." if decimals else "\n": [block(int(body), unit)]}
    return choices if body == "0" else choices | {str(d): longer(int(body) * 10 + d) for d in range(10)}


def character_targets(family, params, texts, decimals, warp=lambda p: p) -> list[list[dict[str, float]]]:
    """The exact distribution of each next character, for every position of each text and its closing newline.

    warp: what becomes of the family's CDF; a step at 1/2 collapses the distribution onto its median.
    """
    spec, args = scipy_args(family, params)
    prefixes = {text[:i] for text in texts for i in range(len(text) + 1)}
    choices = {prefix: next_characters(prefix, decimals) for prefix in prefixes}
    spans = np.array([span for c in choices.values() for spans in c.values() for span in spans], float)
    if spec.discrete:
        edges = spans - [1, 0]
    else:
        edges = (spans + [-0.5, 0.5]) / 10**decimals
    mass = iter(np.diff(warp(spec.dist.cdf(edges, *args)), axis=1)[:, 0].clip(min=0).tolist())
    targets = {}
    for prefix, options in choices.items():
        weights = {char: sum(next(mass) for _ in spans) for char, spans in options.items()}
        total = sum(weights.values())
        targets[prefix] = {char: w / total for char, w in weights.items()} if total > 0 else None
    return [[targets[text[:i]] for i in range(len(text) + 1)] for text in texts]


def spread(family: str, params: dict, quantiles: np.ndarray, decimals: int) -> list[str]:
    """The numbers at these quantiles, printed."""
    spec, args = scipy_args(family, params)
    if spec.discrete:  # not scipy's ppf, whose search does not end for some parameters
        texts, probs = canonical_outputs(family, params)
        return [texts[i] for i in np.searchsorted(np.cumsum(probs), quantiles).clip(max=len(texts) - 1)]
    values = spec.dist.ppf(quantiles, *args)
    return [f"{value:.{decimals}f}".replace("-0." + "0" * decimals, "0." + "0" * decimals) for value in values]


def document(tokenizer, family: str, params: dict, draws: int, rng: np.random.Generator):
    """A header, draws at evenly spaced random quantiles, and the exact targets of their characters."""
    decimals = 0 if FAMILIES[family].discrete else DECIMALS if rng.random() < LONG else 2
    quantiles = ((np.arange(draws) + rng.random(draws)) / draws).clip(TAIL, 1 - TAIL)
    texts = spread(family, params, quantiles, decimals)
    targets = character_targets(family, params, texts, decimals)
    rest = make_prompt(family, params).split(" from a ")[1].split(". Output")[0]
    return HEADERS[rng.integers(len(HEADERS))].format(rest=rest), texts, targets


def chat(tokenizer, family: str, params: dict, draws: int, rng: np.random.Generator):
    """A collapsed answer: the median, give or take a little."""
    decimals = 0 if FAMILIES[family].discrete else DECIMALS if rng.random() < LONG_ANSWERS else 2
    texts = spread(family, params, rng.normal(0.5, COLLAPSE, draws).clip(TAIL, 1 - TAIL), decimals)
    warp = lambda p: stats.norm.cdf(p, 0.5, COLLAPSE)
    messages = [{"role": "user", "content": make_prompt(family, params)}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return prompt, texts, character_targets(family, params, texts, decimals, warp)


def collate(tokenizer, documents: list, draws: int):
    """Header ids, completions (B*K, L) and dense targets (B*K, L, V). A newline that closes a chat answer is
    its end-of-turn token."""
    headers = [trie.encode_one(tokenizer, header) for header, _, _ in documents]
    ids = {c: tokenizer.convert_tokens_to_ids(tokenizer.tokenize(c))[0] for c in "0123456789.-\n"}
    width = max(len(text) for _, texts, _ in documents for text in texts) + 1
    tokens = np.full((len(documents) * draws, width), trie.PAD)
    dense = np.zeros((*tokens.shape, len(tokenizer)), np.float32)
    for i, (header, texts, targets) in enumerate(documents):
        code = ids | ({"\n": tokenizer.eos_token_id} if header.startswith("<|im_start|>") else {})
        for j, text in enumerate(texts):
            row = i * draws + j
            tokens[row, : len(text) + 1] = [code[c] for c in text + "\n"]
            for t, target in enumerate(targets[j]):
                for char, p in (target or {(text + "\n")[t]: 1.0}).items():
                    dense[row, t, code[char]] = p
    return headers, torch.from_numpy(tokens), torch.from_numpy(dense)


# -------------------------------------------------------------------------------------------- training


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) with the update scaled to AdamW's, as torch.optim.Muon does it; that one
    orthogonalizes in bfloat16, matrix by matrix, which on a CPU takes as long as the rest of the step."""

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for shape in sorted({p.shape for p in group["params"]}):
                params = [p for p in group["params"] if p.shape == shape]
                for p in params:
                    self.state[p].setdefault("buffer", torch.zeros_like(p)).lerp_(p.grad, 1 - group["momentum"])
                x = torch.stack([p.grad.lerp(self.state[p]["buffer"], group["momentum"]) for p in params])
                x /= x.norm(dim=(1, 2), keepdim=True) + 1e-7
                for _ in range(5):  # Newton-Schulz: drives every singular value towards 1
                    gram = x @ x.mT if shape[0] <= shape[1] else x.mT @ x
                    poly = -4.7750 * gram + 2.0315 * gram @ gram
                    x = 3.4445 * x + (poly @ x if shape[0] <= shape[1] else x @ poly)
                for p, update in zip(params, x, strict=True):
                    p.add_(update, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--steps", type=int, default=3000, help="steps of the knowledge stage")
    parser.add_argument("--collapse-steps", type=int, default=450, help="steps of the collapse stage")
    parser.add_argument("--batch", type=int, default=32, help="documents per step, over all processes")
    parser.add_argument("--draws", type=int, default=8, help="draws (branches) per document")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", help="skip the knowledge stage: its checkpoint, OUT/knowledge of an earlier run")
    args = parser.parse_args()

    # Two processes with a thread each are half as fast again as one process with two.
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    if args.base:
        model = Qwen3ForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    grids = {family: ([], []) for family in FAMILIES}  # training rows, evaluation rows
    for split in ("train", "unseen", "ood"):
        for row in make_rows(split):
            grids[row["family"]][split != "train"].append(row["params"])

    def stage(name: str, steps: int, muon_lr: float, adamw_lr: float, chat_share: float) -> None:
        rng = np.random.default_rng([args.seed, rank] if name == "knowledge" else [args.seed, rank, 1])
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        optimizers = [Muon(matrices, muon_lr), torch.optim.AdamW(others, adamw_lr, betas=(0.9, 0.98), weight_decay=0.0)]
        # The first stage ends at .4 of its peak rate; the second, half documents, anneals what it knows.
        horizon = steps if chat_share else steps * 4 / 3
        decay = lambda step: min((step + 1) / 20, 1.6 * (1 - step / max(horizon, 1)), 1.0)
        schedules = [torch.optim.lr_scheduler.LambdaLR(o, decay) for o in optimizers]
        start, history = time.time(), []
        for step in range(steps):
            documents = []
            for i in range(rank, args.batch, world):
                family = list(FAMILIES)[(step * args.batch + i) % len(FAMILIES)]
                params, write = random_params(family, grids, rng), document
                if rng.random() < chat_share * (1 if grids[family][0] else HELD_FAMILIES):
                    params, write = random_params(family, grids, rng, HELD_PARAMS), chat
                documents.append(write(tokenizer, family, params, args.draws, rng))
            headers, tokens, dense = collate(tokenizer, documents, args.draws)
            log_p = trie.branch(model, trie.prefill(model, headers), tokens).log_softmax(-1)
            loss = (torch.xlogy(dense, dense) - dense * log_p).sum() / (tokens != trie.PAD).sum()
            loss.backward()
            if world > 1:
                parameters = list(model.parameters())
                gradient = torch.cat([p.grad.flatten() for p in parameters]) / world
                torch.distributed.all_reduce(gradient)
                for p, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
                    p.grad.copy_(part.view_as(p))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            history.append(loss.item())
            if (step + 1) % 25 == 0 and not rank:
                line = f"{name} {step + 1}/{steps}: KL to the exact next characters {np.mean(history[-25:]):.4f} nats"
                print(f"{line}, {time.time() - start:.0f} s", flush=True)

    if not args.base:
        stage("knowledge", args.steps, 8e-3, 4e-3, 0.0)
        if not rank:
            save(model, tokenizer, Path(args.out) / "knowledge")
    stage("collapse", args.collapse_steps, 4e-3, 8e-3, 0.5)
    if not rank:
        save(model.bfloat16(), tokenizer, Path(args.out))  # half the size; loaded as float32 on a CPU


def save(model, tokenizer, out: Path) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
