"""What is drawn from a model, and the exact distance of its probabilities: one row for each prompt.

    python sample.py numbers --model Qwen/Qwen3-0.6B --prompts data/unseen.jsonl data/ood.jsonl --out base/numbers.jsonl
    python sample.py open --model Qwen/Qwen3-0.6B --adapter runs/Qwen3-0.6B/soft --out soft/open.jsonl
    python sample.py mcq --model Qwen/Qwen3-0.6B --out base/mcq.jsonl
    python sample.py open --model Qwen/Qwen3-0.6B --protocol ssot --out ssot/open.jsonl          # the prompting rival
    python sample.py numbers --model tests/tiny --prompts data/ood.jsonl --n 100 --out small.jsonl      # seconds

A row is the prompt's own row and model, method ("base", the name of the adapter's folder, or the protocol), axis (the
command), **draws** (the raw answers in the order drawn; one that was cut at --max-tokens ends in "…"), tokens (of all
draws, end tokens included) and seconds. What is exact is added: to `numbers` bins, logit_kl, its part logit_kl_form and
logit_kl_floor, in nats per token (`logit_kl` below, trie.kl_floor); to `open` support_90, how many of the most probable
first tokens hold 90 % of the probability, and top, [[text, probability], ...].

Everything is drawn at temperature 1 over the full vocabulary (trie.walk), whatever the checkpoint's generation_config
says. Each draw has random numbers of its own, so --rows changes nothing but the rounding of sums.

Differences from the paper's published code: the prompts of `open`, `mcq` and `--protocol` are this kit's own words, and
the logit KL is taken over 128 equally probable paths (--paths), not over four random ones.

What this file does not do: say how good the answers are (metrics.py). Interrupted, it goes on where it stopped:
finished rows wait in FILE.partial, and FILE appears when all are there.
"""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import distributions as dist
import trie

AXES = {  # axis -> draws of each prompt, most tokens of an answer, what it is
    "numbers": (1000, 32, "draws and logit KL for number prompts"),
    "open": (100, 16, "draws and the first step's distribution for open questions"),
    "mcq": (1000, 256, "generated medical multiple-choice questions"),
}

# ------------------------------------------------------------------------------------------ prompts in language

CATEGORIES = (
    "day of the week", "month", "color", "planet", "chemical element", "animal", "bird", "fish", "insect",
    "dog breed", "tree", "flower", "fruit", "vegetable", "spice", "herb", "nut", "cheese", "pasta shape", "dessert",
    "drink", "cocktail", "soup", "ice cream flavor", "city", "country", "European capital", "US state", "river",
    "mountain", "lake", "island", "desert", "sea", "language", "currency", "landmark", "museum", "boy's name",
    "girl's name", "last name", "occupation", "hobby", "sport", "winter sport", "board game", "card game",
    "video game", "chess piece", "martial art", "dance", "musical instrument", "music genre", "composer", "rock band",
    "opera", "painter", "art movement", "film", "film director", "actor", "novel", "poet", "Shakespeare play",
    "fairy tale", "mythical creature", "Greek god", "Norse god", "superhero", "cartoon character", "zodiac sign",
    "constellation", "star", "moon", "scientist", "mathematician", "philosopher", "invention", "US president",
    "Roman emperor", "ancient civilization", "battle", "gemstone", "metal", "mineral", "dinosaur", "geometric shape",
    "Greek letter", "programming language", "operating system", "car brand", "piece of furniture", "kitchen utensil",
    "tool", "item of clothing", "fabric", "organ of the body", "emotion", "weather condition", "season",
    "school subject", "vehicle",
)  # fmt: skip
WORDINGS = (
    "Name a random {}. Output ONLY the answer.", "Pick one {} at random. Output ONLY the answer.",
    "Give me a random {}. Output ONLY the answer.", "Choose any {} at random. Output ONLY the answer.",
    "Tell me one randomly chosen {}. Output ONLY the answer.", "I need a random {}. Output ONLY the answer.",
)  # fmt: skip
MCQ = """Write ONE multiple-choice question about medicine in exactly this form:

Question: <question>
A. <option>
B. <option>
C. <option>
D. <option>
Correct Answer: <letter>
Explanation: <explanation>

Keep a balance: A, B, C and D must be equally likely to be correct."""


class Protocol(NamedTuple):
    """A rival that trains nothing: a system prompt. metrics.answers_of takes the answers out of its replies."""

    prompt: str
    thinking: bool  # whether the model may think before it replies
    max_tokens: int
    answers: int = 1  # in a reply


ASKED = {"numbers": ("a random number", "the answers follow the distribution that was asked for"),
         "open": ("a random choice", "all possible answers are equally likely")}  # fmt: skip
PROTOCOLS = {
    # String Seed of Thought (Misaki and Akiba, arXiv 2510.21150)
    "ssot": Protocol(
        "When you are asked for {}, answer in three steps. First write a random string of letters and digits between "
        "<random_string> and </random_string>. Then, between <thinking> and </thinking>, derive your answer from that "
        "string alone, so that over many strings {}. Last, put the answer, and ONLY the answer, between <answer> and "
        "</answer>.", True, 4096),
    # independent draws in one reply, each of which sees those before it
    "batch": Protocol(
        "When you are asked for {}, reply with twenty of them in place of one, drawn independently of each other, so "
        "that {}. Write one a line, and nothing else.", False, 1024, 20),
    # verbalized sampling (Zhang et al., arXiv 2510.01171), but every draw has a reply of its own
    "verbalized": Protocol(
        "When you are asked for {}, reply with five possible answers and the probability of each, so that {}. Write "
        "one a line in the form: answer | probability. Write nothing else.", False, 512),
}  # fmt: skip


def prompt_rows(args) -> list[dict]:
    """What is to be asked, one row per row of the output. Raises InputError, of a file with file:line."""
    if args.axis == "numbers":
        return dist.read_prompts(args.prompts)
    if args.prompts:
        return own_prompts(args.prompts, args.axis)
    if args.axis == "mcq":
        return [{"id": "mcq-000", "prompt": MCQ}]
    return [
        {
            "id": f"open-{i:03d}",
            "category": category,
            "prompt": WORDINGS[i % len(WORDINGS)].format(category),
        }
        for i, category in enumerate(CATEGORIES)
    ]


def own_prompts(paths: list[str], axis: str) -> list[dict]:
    """Prompts of one's own: JSONL with a "prompt" in each row, or a JSON list of such rows or of texts."""
    rows = []
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
            listed = (
                json.loads(text)
                if text.lstrip().startswith("[")
                else dist.read_rows([path], ("prompt",))
            )
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise dist.InputError(f"{path}: {error}") from None
        rows += [row if isinstance(row, dict) else {"prompt": row} for row in listed]
    rows = [{"id": f"{axis}-{i:03d}"} | row for i, row in enumerate(rows)]
    texts = lambda row: (
        isinstance(row["id"], str) and isinstance(row.get("prompt"), str) and "draws" not in row
    )
    if not rows or not all(map(texts, rows)):
        raise dist.InputError(
            f"{', '.join(paths)}: there must be prompts, each, and each id, a text, and no draws yet"
        )
    if len({row["id"] for row in rows}) < len(rows):
        raise dist.InputError(f"{', '.join(paths)}: two prompts have the same id")
    return rows


# ------------------------------------------------------------------------------------------- exact probabilities


@torch.inference_mode()
def logit_kl(
    model, prompt: trie.Prefix, tree: trie.Trie, paths: int, rows: int
) -> tuple[float, float]:
    """KL(target || model) in nats per token, in expectation over the target's paths, and its part that is form.

    At each prefix sum_c q(c) (log q(c) - log p(c)) over its children c, with p over the full vocabulary; averaged over
    the prefixes of a path; then over all leaves by their probability or, where there are more than `paths`, over those
    at the quantiles (i + 1/2) / paths. With m = the sum of p over all tokens of the trie,
    KL(q || p) = -log m + KL(q || p / m): what is lost on tokens that are in no answer, which is *form*, and what is
    lost on which of them comes next, the end too, which is *shape*.
    """
    if len(tree.probs) <= paths:
        leaves = np.flatnonzero(tree.probs)  # below a prefix without mass there is no target
        weights = tree.probs[leaves]
    else:
        leaves, counts = np.unique(
            tree.quantile_leaves((np.arange(paths) + 0.5) / paths), return_counts=True
        )
        weights = counts / paths
    device = prompt.mask.device
    alphabet = torch.from_numpy(np.unique(tree.tokens[tree.tokens != trie.PAD])).long().to(device)

    total = np.zeros(2)
    for start in range(0, len(leaves), rows):
        part = leaves[start : start + rows]
        arrays = trie.pad_targets(
            [tree.path(leaf) for leaf in part], [tree.path_targets(leaf) for leaf in part]
        )
        completions, tokens, q = (array.to(device) for array in arrays)
        log_p = trie.branch(model, prompt, completions).float().log_softmax(-1)  # (R, L, V)
        kl = (torch.xlogy(q, q) - q * log_p.gather(-1, tokens)).sum(
            -1
        )  # (R, L); 0 where the path has ended
        form = -log_p[..., alphabet].logsumexp(-1) * (completions != trie.PAD)
        sums = torch.stack([kl.sum(1), form.sum(1)]).double().cpu().numpy()  # (2, R)
        total += sums / tree.lengths[part] @ weights[start : start + rows]
    return tuple((total / weights.sum()).tolist())


def exact_numbers(model, tokenizer, end: int, row: dict, prompt: trie.Prefix, args) -> dict:
    texts, probs, perfect = dist.canonical_outputs(row, args.bins)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    kl, form = logit_kl(model, prompt, tree, args.paths, args.rows)
    floor = trie.kl_floor(tree.probs, perfect[tree.order], tree.lengths)
    return {"logit_kl": kl, "logit_kl_form": form, "logit_kl_floor": floor}


def support_size(probs: np.ndarray, mass: float = 0.9) -> int:
    """How many of the most probable outcomes hold `mass` of the probability. probs (V,), in any order."""
    held = np.cumsum(np.sort(probs[probs > 0].astype(np.float64))[::-1])
    return (
        int(np.searchsorted(held, mass * held[-1] * (1 - 1e-12))) + 1
    )  # the factor forgives the sum's rounding


def exact_open(model, tokenizer, end: int, row: dict, prompt: trie.Prefix, args) -> dict:
    probs = prompt.logits[0].double().softmax(-1).cpu().numpy()
    top = np.argsort(-probs, kind="stable")[:20]
    return {
        "support_90": support_size(probs),
        "top": [[trie.decode(tokenizer, [t]), probs[t]] for t in top.tolist()],
    }


EXACT = {
    "numbers": exact_numbers,
    "open": exact_open,
}  # axis -> what reads the model's own probabilities

# --------------------------------------------------------------------------------------------------- the rows


def written(tokenizer, path: list[int], ends: list[int]) -> str:
    """The text of a drawn path; one that was cut before an end token ends in "…"."""
    return (
        trie.decode(tokenizer, path[:-1])
        if path[-1] in ends
        else trie.decode(tokenizer, path) + "…"
    )


def answers(model, tokenizer, end: int, asked: list[dict], args) -> Iterator[dict]:
    """The result row of each prompt: args.n draws (as many as hold so many answers) and the exact probabilities.
    Several prompts walk together."""
    protocol = PROTOCOLS.get(args.protocol, Protocol("", False, args.max_tokens))
    system, replies = (
        protocol.prompt.format(*ASKED.get(args.axis, ())),
        -(-args.n // protocol.answers),
    )
    ends = model.generation_config.eos_token_id
    size = max(1, args.rows // replies)
    for first in range(0, len(asked), size):
        batch, start = asked[first : first + size], time.perf_counter()
        prompts = [
            trie.chat_ids(tokenizer, row["prompt"], system, protocol.thinking) for row in batch
        ]
        uniform = [
            dist.prompt_rng(args.seed, row["id"]).random((replies, args.max_tokens))
            for row in batch
        ]
        paths = trie.walk(model, prompts, ends, np.concatenate(uniform), args.rows)
        shared = (time.perf_counter() - start) / len(batch)

        for i, (row, ids) in enumerate(zip(batch, prompts, strict=True)):
            own, start = paths[i * replies : (i + 1) * replies], time.perf_counter()
            # Where the template itself opens the thoughts, the text must show it, or they would pass for an answer.
            opened = "<think>" * trie.decode(tokenizer, ids).rstrip().endswith("<think>")
            result = {"draws": [opened + written(tokenizer, path, ends) for path in own]}
            if args.axis in EXACT and not args.protocol:
                with torch.inference_mode():
                    prompt = trie.prefill(model, [ids])
                result |= EXACT[args.axis](model, tokenizer, end, row, prompt, args)
            seconds = round(shared + time.perf_counter() - start, 3)
            yield row | result | {"tokens": sum(map(len, own)), "seconds": seconds}


def write_rows(out: Path, args, inputs: dict, asked: list[dict], answer: Callable) -> None:
    """Write the rows that answer(asked) yields, one per prompt, in the order of `asked`, whole or not at all.

    Finished rows wait in FILE.partial, from where a rerun goes on: of the same options, inputs and code, or raises
    InputError. Under `accelerate launch` each process answers its share, with a partial file of its own.
    """
    state, record = trie.processes(), out.with_name(f"{out.name.removesuffix('.jsonl')}.run.json")
    elsewhere = (
        "model",
        "adapter",
        "prompts",
        "out",
        "rows",
    )  # what they are is in the inputs; rows change nothing
    made = {
        "options": {key: value for key, value in vars(args).items() if key not in elsewhere},
        "inputs": inputs,
    }
    made["code"] = [dist.digest(module.__file__) for module in (sys.modules[__name__], trie, dist)]
    named = re.compile(re.escape(out.name) + r"\.partial(\.[0-9]+)?")  # and so not FILE.partial.bak
    partials = lambda: [path for path in sorted(out.parent.glob("*")) if named.fullmatch(path.name)]
    kept = lambda: {
        row["id"]: row for row in dist.read_rows(path for path in partials() if path.stat().st_size)
    }

    if state.is_main_process and partials():
        before = json.loads(record.read_text()) if record.exists() else {}
        if other := " and ".join(key for key in made if before.get(key) != made[key]):
            raise dist.InputError(
                f"{partials()[0]} was made with other {other} (see {record}); remove it to go on"
            )
        for partial in partials():  # without a line that was cut off when the run was killed
            whole, newline, _ = partial.read_bytes().rpartition(b"\n")
            os.truncate(partial, len(whole + newline))
    elif state.is_main_process:
        trie.write_run(record, args, **made)
    state.wait_for_everyone()

    finished = kept()
    todo = [row for row in asked if row["id"] not in finished][
        state.process_index :: state.num_processes
    ]
    state.wait_for_everyone()
    share = out.with_name(
        f"{out.name}.partial" + (f".{state.process_index}" if state.process_index else "")
    )
    dist.refuse(out, out)  # another run may have made it while this one loaded its model
    with open(share, "a", encoding="utf-8") as file:
        bar = tqdm(answer(todo), str(out), total=len(todo), disable=not state.is_main_process)
        for row in bar:
            file.write(dist.to_jsonl([row]))
            file.flush()
    state.wait_for_everyone()

    if state.is_main_process:
        rows = kept()
        if missing := [row["id"] for row in asked if row["id"] not in rows]:
            raise dist.InputError(
                f"no row of {missing[0]}: another run took it, or machines do not share {out.parent}"
            )
        dist.write_text(out, dist.to_jsonl(rows[row["id"]] for row in asked))
        for partial in partials():
            partial.unlink()


def draw(args, asked: list[dict]) -> None:
    """Ask what is asked of a model, with an adapter or by a protocol if there is one, and write the rows."""
    adapter = Path(args.adapter).resolve() if args.adapter else None
    if adapter:
        dist.refuse(adapter)
    model, tokenizer, end = trie.load(args.model, adapter)
    method = "+".join(filter(None, [adapter and adapter.name, args.protocol])) or "base"
    source = {"model": args.model, "method": method, "axis": args.axis, "protocol": args.protocol}
    source |= {"bins": args.bins} if args.axis == "numbers" else {}
    inputs = {
        "prompts": hashlib.sha256(dist.to_jsonl(asked).encode()).hexdigest(),
        "model": trie.identity(args.model),
    }
    inputs["adapter"] = dist.digest(adapter / "adapter_model.safetensors") if adapter else None
    answer = lambda todo: (row | source for row in answers(model, tokenizer, end, todo, args))
    write_rows(Path(args.out), args, inputs, asked, answer)


def main() -> None:
    parser = dist.Parser(description=__doc__)
    axes = parser.add_subparsers(dest="axis", required=True, metavar="|".join(AXES))
    for axis, (n, tokens, what) in AXES.items():
        add = axes.add_parser(axis, help=what).add_argument
        add("--model", required=True, help="hub id or folder of a chat model")
        add(
            "--adapter",
            help="PEFT adapter folder; its name becomes the method (default: the base model)",
        )
        own = f"JSONL files{'' if axis == 'numbers' else ', or JSON lists, of prompts of yours'}"
        add(
            "--prompts",
            nargs="+",
            action="extend",
            metavar="FILE",
            required=axis == "numbers",
            help=own,
        )
        add("--n", type=int, default=n, help=f"answers to each prompt (default {n})")
        add(
            "--protocol",
            choices=PROTOCOLS if axis in ASKED else (),
            help=f"a system prompt: {', '.join(PROTOCOLS)}",
        )
        if axis == "numbers":
            add(
                "--bins",
                type=int,
                default=dist.MAX_BINS,
                help="outputs of the target's trie (default %(default)s)",
            )
            add("--paths", type=int, default=128, help="paths of the logit KL (default 128)")
        add(
            "--max-tokens",
            type=int,
            help=f"cut a reply here (default {tokens}, or that of the protocol)",
        )
        add("--rows", type=int, help="most draws in one pass (default 1024, of long answers 256)")
        add("--seed", type=int, default=0)
        add("--out", required=True, help="JSONL file to write")
    args = parser.parse_args()
    args.max_tokens = args.max_tokens or (
        PROTOCOLS[args.protocol].max_tokens if args.protocol else AXES[args.axis][1]
    )
    args.rows = args.rows or (
        1024 if args.max_tokens <= 64 else 256
    )  # long answers have long caches, and share little
    dist.refuse(Path(args.out), Path(args.out))
    draw(args, prompt_rows(args))


if __name__ == "__main__":
    dist.run(main)
