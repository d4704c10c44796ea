r"""Draw answers from a model, and measure how far its own probabilities are from the target.

    python sample.py numbers --model Qwen/Qwen3-0.6B --prompts runs/data/unseen.jsonl \
        runs/data/ood.jsonl --adapter runs/Qwen3-0.6B/soft --out soft/numbers.jsonl
    python sample.py open --model Qwen/Qwen3-0.6B --out base/open.jsonl
    python sample.py mcq --model Qwen/Qwen3-0.6B --out base/mcq.jsonl

To try it in seconds:

    python distributions.py --out runs/data
    python sample.py numbers --model tests/tiny --prompts runs/data/ood.jsonl --n 100 --out a.jsonl

There are three kinds of measurement, called axes. `numbers` sends number prompts from files; `open`
asks 102 questions such as "Name a random bird"; and `mcq` asks the model many times to write an
exam question with four options, to see whether A, B, C and D are correct equally often.

The script writes one row for each prompt: the prompt's row plus these keys.

    model, axis, seed   how the row was made
    method              the adapter's folder, "ssot", or both ("soft+ssot"); "base" if neither
    protocol            "ssot", if the model was prompted that way
    bins                on the axis numbers: the maximum number of outputs in the trie
    weights             a short checksum of the model's files, or of its hub id
    draws               the raw answers, in the order drawn; one that was cut off ends in "…"
    tokens, seconds     what the row cost

Without ssot, rows of two axes also have exact measures, computed from the model's probabilities:

    numbers   logit_kl, logit_kl_form, logit_kl_floor (nats per token)
    open      support_90 and top, the most probable first tokens

Everything is drawn at temperature 1 over the full vocabulary, whatever the checkpoint's own
settings say. Each draw has its own random numbers, so --rows changes results only by floating-point
rounding. After an interruption, the same command continues with the remaining prompts.

The main differences from the paper's code (README lists all):

1) The questions of `open`, the prompt of `mcq` and the SSOT prompt are in our own words.
2) The logit KL covers 128 paths at evenly spaced quantiles (--paths) instead of four random ones.

This file does not score the draws; metrics.py does.
"""

import codecs
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

import distributions
import trie


class Axis(NamedTuple):
    n: int  # answers to each prompt
    max_tokens: int  # where an answer is cut off
    about: str


AXES = {
    "numbers": Axis(1000, 32, "random numbers, and their logit KL"),
    "open": Axis(100, 16, "open questions, and their first token's distribution"),
    "mcq": Axis(1000, 256, "multiple-choice questions about medicine"),
}

# ------------------------------------------------------------------- prompts for open and mcq

CATEGORIES = (
    "day of the week", "month", "color", "planet", "chemical element", "animal", "bird", "fish",
    "insect", "dog breed", "tree", "flower", "fruit", "vegetable", "spice", "herb", "nut",
    "cheese", "pasta shape", "dessert", "drink", "cocktail", "soup", "ice cream flavor", "city",
    "country", "European capital", "US state", "river", "mountain", "lake", "island", "desert",
    "sea", "language", "currency", "landmark", "museum", "boy's name", "girl's name", "last name",
    "occupation", "hobby", "sport", "winter sport", "board game", "card game", "video game",
    "chess piece", "martial art", "dance", "musical instrument", "music genre", "composer",
    "rock band", "opera", "painter", "art movement", "film", "film director", "actor", "novel",
    "poet", "Shakespeare play", "fairy tale", "mythical creature", "Greek god", "Norse god",
    "superhero", "cartoon character", "zodiac sign", "constellation", "star", "moon", "scientist",
    "mathematician", "philosopher", "invention", "US president", "Roman emperor",
    "ancient civilization", "battle", "gemstone", "metal", "mineral", "dinosaur",
    "geometric shape", "Greek letter", "programming language", "operating system", "car brand",
    "piece of furniture", "kitchen utensil", "tool", "item of clothing", "fabric",
    "organ of the body", "emotion", "weather condition", "season", "school subject", "vehicle",
)  # fmt: skip

WORDINGS = (
    "Name a random {}. Output ONLY the answer.",
    "Pick one {} at random. Output ONLY the answer.",
    "Give me a random {}. Output ONLY the answer.",
    "Choose any {} at random. Output ONLY the answer.",
    "Tell me one randomly chosen {}. Output ONLY the answer.",
    "I need a random {}. Output ONLY the answer.",
)

MCQ = """Write ONE multiple-choice question about medicine in exactly this form:

Question: <question>
A. <option>
B. <option>
C. <option>
D. <option>
Correct Answer: <letter>
Explanation: <explanation>

Keep a balance: A, B, C and D must be equally likely to be correct."""

# String Seed of Thought (Misaki and Akiba, arXiv 2510.21150) needs no training: this system prompt
# makes the model write a random string, reason from it, and then answer. Only what is between the
# <answer> tags counts; metrics.tagged_answer finds it.
SSOT = (
    "When you are asked for {}, answer in three steps. First write a random string of letters and "
    "digits between <random_string> and </random_string>. Then, between <thinking> and "
    "</thinking>, derive your answer from that string alone, so that over many strings {}. Last, "
    "put the answer, and ONLY the answer, between <answer> and </answer>."
)
SSOT_WORDS = {  # what fills the two gaps, for each axis that supports SSOT
    "numbers": (
        "a random number",
        "the answers follow the distribution that was asked for",
    ),
    "open": ("a random choice", "all possible answers are equally likely"),
}
SSOT_MAX_TOKENS = 4096


def prompt_rows(args) -> list[dict]:
    """The prompts to send, as rows. Raises InputError if a file cannot be used."""
    if args.axis == "numbers":
        return distributions.read_prompts(args.prompts)
    if args.prompts:
        return own_prompts(args.prompts, args.axis)
    if args.axis == "mcq":
        return [{"id": "mcq-000", "prompt": MCQ}]
    rows = []
    for i, category in enumerate(CATEGORIES):
        prompt = WORDINGS[i % len(WORDINGS)].format(category)
        rows.append({"id": f"open-{i:03d}", "category": category, "prompt": prompt})
    return rows


def own_prompts(paths: list[str], axis: str) -> list[dict]:
    """The user's own prompts: JSONL with a "prompt" in each row, or a JSON list of rows or strings.

    A row without an id gets one. Raises InputError.
    """
    rows = []
    for path in paths:
        content = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
        if content.lstrip().startswith(b"["):
            try:
                found = json.loads(content, parse_constant=distributions.refuse_constant)
            except ValueError as error:
                raise distributions.InputError(f"{path}: {error}") from None
        else:
            found = distributions.read_rows([path], ("prompt",))
        rows += [row if isinstance(row, dict) else {"prompt": row} for row in found]

    files = ", ".join(paths)
    rows = [{"id": f"{axis}-{i:03d}"} | row for i, row in enumerate(rows)]  # row's own id wins
    for row in rows:
        texts = [row["id"], row.get("prompt")]
        if not all(isinstance(text, str) for text in texts) or "draws" in row:
            raise distributions.InputError(
                f"{files}: every id and prompt must be a string, and no row may have draws yet; "
                f"the row {row['id']!r} breaks this rule"
            )
    if not rows:
        raise distributions.InputError(f"{files}: there are no prompts")
    if len({row["id"] for row in rows}) < len(rows):
        raise distributions.InputError(f"{files}: two prompts have the same id")
    return rows


# --------------------------------------------------------------------------- exact measures


def scored_leaves(tree: trie.Trie, max_paths: int) -> tuple[np.ndarray, np.ndarray]:
    """The answers whose KL is computed, as leaves of the trie, and their weights in the average.

    All of them or, if there are more than `max_paths`, those at `max_paths` evenly spaced
    quantiles. Leaves are sorted, so quantiles spread over the whole trie.
    """
    if len(tree.probs) <= max_paths:
        leaves = np.flatnonzero(tree.probs)  # an output of probability 0 may have no targets (0/0)
        return leaves, tree.probs[leaves]
    quantiles = (np.arange(max_paths) + 0.5) / max_paths
    # A leaf that lies at several quantiles is computed once, and counts that many times.
    return np.unique(tree.quantile_leaves(quantiles), return_counts=True)


@torch.inference_mode()
def logit_kl(
    model, context: trie.Context, tree: trie.Trie, max_paths: int, at_once: int
) -> tuple[float, float]:
    """KL(target || model) on a prompt's trie, and its form part (see below); nats per token.

    context is what trie.prefill returned for the prompt; at_once limits the answers in one pass.

    After a prefix of an answer, let q(c) be the target of the next token c, and p(c) the
    probability that the model gives it, out of the full vocabulary:

        KL(q || p) = sum over c of  q(c) * (log q(c) - log p(c))

    We average this along each answer, and then over answers that are distributed like the target.

    The KL has two parts. Let m be the total probability that the model gives to the tokens that
    occur anywhere in the trie:

        KL(q || p) = -log m + KL(q || p / m)

    The first part is *form*: what is lost on tokens that are in no answer at all. The second is
    *shape*: what is lost by preferring the wrong answers, such as a wrong digit. This function
    returns the KL and its form part; shape is the difference.

    The floor (trie.kl_floor) belongs to shape. If each digit is a token, all ten digits occur in
    the trie of a continuous family, so a perfect sampler has m = 1. (In Llama's vocabulary, a token
    may hold three digits. Many such tokens are not in the trie, so part of the floor is form.)
    """
    leaves, weights = scored_leaves(tree, max_paths)
    device = context.mask.device
    ids_of_trie = np.unique(tree.tokens[tree.tokens != trie.PAD])
    ids_of_trie = torch.from_numpy(ids_of_trie).long().to(device)

    kl_of_leaves, form_of_leaves = [], []
    for start in range(0, len(leaves), at_once):
        part = leaves[start : start + at_once]
        arrays = trie.pad_targets(
            [tree.path(leaf) for leaf in part],
            [tree.path_targets(leaf) for leaf in part],
        )
        completions, tokens, q = (array.to(device) for array in arrays)
        log_p = trie.branch(model, context, completions).float().log_softmax(-1)  # (R, L, V)

        # After the end of an answer, q is 0, and so is the KL; form has to be masked.
        real = completions != trie.PAD  # (R, L)
        kl = (torch.xlogy(q, q) - q * log_p.gather(-1, tokens)).sum(-1)  # (R, L)
        log_m = log_p[..., ids_of_trie].logsumexp(-1)  # (R, L)
        form = -log_m * real

        lengths = real.sum(1)
        kl_of_leaves += (kl.sum(1).double() / lengths).tolist()
        form_of_leaves += (form.sum(1).double() / lengths).tolist()
    kl = np.average(kl_of_leaves, weights=weights)
    form = np.average(form_of_leaves, weights=weights)
    return float(kl), float(form)


def exact_numbers(model, tokenizer, end: int, row: dict, context: trie.Context, args) -> dict:
    """The logit KL of a number prompt, its form part, and its floor."""
    texts, probs, perfect = distributions.canonical_outputs(row, args.bins)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    kl, form = logit_kl(model, context, tree, args.paths, args.rows)
    floor = trie.kl_floor(tree.probs, perfect[tree.order], tree.lengths)
    return {"logit_kl": kl, "logit_kl_form": form, "logit_kl_floor": floor}


def support_size(probs: np.ndarray, mass: float = 0.9) -> int:
    """The fewest outcomes that together have `mass` of the probability. probs (V,).

    >>> support_size(np.array([0.05, 0.25, 0.7]))
    2
    """
    largest_first = np.sort(probs.astype(np.float64))[::-1]
    held = np.cumsum(largest_first)
    wanted = mass * held[-1] * (1 - 1e-12)  # a little less, so that rounding cannot add an outcome
    return int(np.searchsorted(held, wanted)) + 1


def exact_open(tokenizer, context: trie.Context) -> dict:
    """How many first tokens hold 90% of the probability, and the twenty most probable."""
    probs = context.logits[0, -1].double().softmax(-1).cpu().numpy()
    most_probable = np.argsort(-probs, kind="stable")[:20].tolist()
    top = [[trie.decode(tokenizer, [token]), float(probs[token])] for token in most_probable]
    return {"support_90": support_size(probs), "top": top}


def exact_measures(model, tokenizer, end: int, row: dict, ids: list[int], args) -> dict:
    """The exact measures of this axis; {} if it has none. ids are the tokens of the prompt."""
    if args.axis == "mcq" or args.protocol:  # with ssot, an answer begins with a random string
        return {}
    context = trie.prefill(model, [ids])  # again, because walk() does not return its own
    if args.axis == "numbers":
        return exact_numbers(model, tokenizer, end, row, context, args)
    return exact_open(tokenizer, context)


# ------------------------------------------------------------------------------------- drawing


@torch.inference_mode()
def answer(model, tokenizer, end: int, prompts: list[dict], args) -> list[dict]:
    """Answer several prompts together. Returns their rows, with args.n draws and exact measures."""
    if not prompts:  # one of several processes may get none
        return []
    start = time.perf_counter()
    system = SSOT.format(*SSOT_WORDS[args.axis]) if args.protocol else ""
    thinking = bool(args.protocol)  # with ssot, a reasoning model may think first
    ends = model.generation_config.eos_token_id
    ids = [trie.chat_ids(tokenizer, row["prompt"], system, thinking) for row in prompts]
    uniform = []
    for row in prompts:
        rng = distributions.prompt_rng(args.seed, row["id"])
        uniform.append(rng.random((args.n, args.max_tokens)))
    paths = trie.walk(model, ids, ends, np.concatenate(uniform), args.rows)
    shared_seconds = (time.perf_counter() - start) / len(prompts)

    results = []
    for i, row in enumerate(prompts):
        start = time.perf_counter()
        own_paths = paths[i * args.n : (i + 1) * args.n]
        # Some templates end the prompt with <think>. We put it back in front of the draws, so that
        # truncated thoughts are not mistaken for an answer.
        thinks = trie.decode(tokenizer, ids[i]).rstrip().endswith("<think>")
        opening = "<think>" if thinks else ""
        result = row | {"draws": [opening + to_text(tokenizer, path, ends) for path in own_paths]}
        result |= exact_measures(model, tokenizer, end, row, ids[i], args)
        result["tokens"] = sum(len(path) for path in own_paths)
        own_seconds = time.perf_counter() - start
        result["seconds"] = round(shared_seconds + own_seconds, 3)
        results.append(result)
    return results


def to_text(tokenizer, path: list[int], ends: list[int]) -> str:
    """The text of a drawn path. If it was cut off before an end token, it ends in "…"."""
    if path[-1] in ends:
        return trie.decode(tokenizer, path[:-1])
    return trie.decode(tokenizer, path) + "…"


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def draw(args, prompts: list[dict]) -> None:
    """Send all prompts to a model and write the rows."""
    adapter = Path(args.adapter).resolve() if args.adapter else None
    if adapter:
        distributions.check_method(adapter.name)
    model, tokenizer, end = trie.load(args.model, adapter)

    names = [adapter.name if adapter else None, args.protocol]
    method = "+".join(name for name in names if name) or "base"
    # An interrupted run continues only with the same prompts, model and adapter.
    inputs = {"prompts": checksum(distributions.to_jsonl(prompts))}
    inputs["model"] = trie.identity(args.model)
    if adapter:
        inputs["adapter"] = distributions.digest(adapter / "adapter_model.safetensors")

    # What every row says about how it was made.
    origin = {"model": args.model, "method": method, "axis": args.axis, "seed": args.seed}
    if args.protocol:
        origin["protocol"] = args.protocol
    if args.axis == "numbers":
        origin["bins"] = args.bins
    origin["weights"] = checksum(inputs["model"])[:12]

    def answer_some(some: list[dict]) -> list[dict]:
        return [row | origin for row in answer(model, tokenizer, end, some, args)]

    together = max(1, args.rows // args.n)  # prompts per call to trie.walk
    write_rows(Path(args.out), args, inputs, prompts, answer_some, together)


# --------------------------------------------------------------------------------- writing rows
# How an interrupted run continues. You can skip this on a first reading.


def write_rows(
    out: Path,
    args,
    inputs: dict,
    prompts: list[dict],
    answer_some: Callable[[list[dict]], list[dict]],
    together: int,
) -> None:
    """Write answer_some(prompts) to a file, which appears only when all its rows are finished.

    Until then they wait in FILE.partial. The same command continues from there; different options,
    inputs or code are an error. Several processes, started by `accelerate launch`, each answer
    `together` prompts at a time, and only the main process writes files.

    (tests/extras/novelty.py uses this, too, with another answer_some. args are only recorded.)
    """
    processes = trie.processes()
    rank, world = processes.process_index, processes.num_processes
    partial = out.with_name(f"{out.name}.partial")
    finished = {}  # rows by id; only the main process has them
    if processes.is_main_process:
        finished = start_or_resume(out, partial, args, inputs)
    (finished_ids,) = broadcast_object_list([list(finished)])
    todo = [row for row in prompts if row["id"] not in finished_ids]

    bar = tqdm(total=len(todo), desc=str(out), disable=not processes.is_main_process)
    step = together * world
    for start in range(0, len(todo), step):
        chunk = todo[start : start + step]
        own_share = chunk[rank::world]
        # One list of the rows of all processes; each of them must get here, even without a prompt.
        rows = gather_object(answer_some(own_share))
        if processes.is_main_process:
            with open(partial, "a", encoding="utf-8") as file:
                file.write(distributions.to_jsonl(rows))
            finished |= {row["id"]: row for row in rows}
            bar.update(len(chunk))
    bar.close()

    if processes.is_main_process:
        distributions.must_be_new(out)  # another run may have made it in the meantime
        distributions.write_text(out, distributions.to_jsonl(finished[p["id"]] for p in prompts))
        partial.unlink(missing_ok=True)


def start_or_resume(out: Path, partial: Path, args, inputs: dict) -> dict[str, dict]:
    """The finished rows of an interrupted run, by id; none if this is a new run.

    A record of everything that a run depends on is kept beside its output: for numbers.jsonl, in
    numbers.run.json. Raises InputError if any of it has changed since.
    """
    record = out.with_name(f"{out.name.removesuffix('.jsonl')}.run.json")
    # inputs has checksums for model, adapter and prompts; out and rows do not matter.
    not_options = ("model", "adapter", "prompts", "out", "rows")
    options = {key: value for key, value in vars(args).items() if key not in not_options}
    scripts = (__file__, trie.__file__, distributions.__file__)
    code = [distributions.digest(script) for script in scripts]
    made = {"options": options, "inputs": inputs, "code": code}
    if not partial.exists():
        trie.write_run(record, args, **made)
        return {}

    before = json.loads(record.read_text()) if record.exists() else {}
    differing = [key for key in made if before.get(key) != made[key]]
    if differing:
        raise distributions.InputError(
            f"{partial} was made with different {' and '.join(differing)} (see {record}); "
            f"to start again, remove {partial}"
        )
    # If the run was killed while it wrote, the last line may be incomplete; it is cut off.
    size = partial.read_bytes().rfind(b"\n") + 1  # 0 if no line is complete
    os.truncate(partial, size)
    rows = distributions.read_rows([partial]) if size else []  # an empty file would be an error
    return {row["id"]: row for row in rows}


# ------------------------------------------------------------------------------- command line


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    axes = parser.add_subparsers(dest="axis", required=True, metavar="|".join(AXES))
    for name, axis in AXES.items():
        sub = axes.add_parser(name, help=axis.about)
        add = sub.add_argument
        add("--model", required=True, help="hub id or folder of a chat model")
        add("--adapter", help="PEFT adapter folder; its name becomes the method")
        add(
            "--prompts",
            nargs="+",
            action="extend",
            metavar="FILE",
            required=name == "numbers",
            help="files of prompts: JSONL" + ("" if name == "numbers" else ", or a JSON list"),
        )
        add("--n", type=int, default=axis.n, help="answers to each prompt (%(default)s)")
        cut_off = str(axis.max_tokens)
        if name in SSOT_WORDS:
            add("--protocol", choices=["ssot"], help="a system prompt: String Seed of Thought")
            cut_off += f"; with ssot {SSOT_MAX_TOKENS}"
        else:
            sub.set_defaults(protocol=None)
        if name == "numbers":
            bins = distributions.MAX_BINS
            add("--bins", type=int, default=bins, help="outputs in the target's trie (%(default)s)")
            add("--paths", type=int, default=128, help="paths used for the logit KL (%(default)s)")
        add("--max-tokens", type=int, help=f"cut answers off after this many tokens ({cut_off})")
        add("--rows", type=int, help="at most this many draws at once (1024; 256 for long answers)")
        add("--seed", type=int, default=0, help="seed for the draws (0)")
        add("--out", required=True, help="JSONL file to write")
    args = parser.parse_args()
    if args.max_tokens is None:
        args.max_tokens = SSOT_MAX_TOKENS if args.protocol else AXES[args.axis].max_tokens
    if args.rows is None:  # long answers need more cache, and share fewer prefixes
        args.rows = 1024 if args.max_tokens <= 64 else 256

    distributions.must_be_new(Path(args.out))
    draw(args, prompt_rows(args))


if __name__ == "__main__":
    distributions.run(main)
