"""Everything that needs a model after training: what is drawn from it, the exact distance of its probabilities, and
what it still knows.

    python sample.py numbers --model Qwen/Qwen3-0.6B --prompts data/unseen.jsonl data/ood.jsonl --out base.jsonl
    python sample.py open --model Qwen/Qwen3-0.6B --adapter runs/Qwen3-0.6B/soft --out open.jsonl
    python sample.py mcq --model Qwen/Qwen3-0.6B --out mcq.jsonl
    python sample.py open --model Qwen/Qwen3-0.6B --ssot --out ssot.jsonl          # the prompting rival
    python sample.py novelty --model Qwen/Qwen3-0.6B --split curated --out novelty-curated/base/generations.jsonl
    python sample.py retention --model Qwen/Qwen3-0.6B --adapter runs/Qwen3-0.6B/soft --out retention/soft
    python sample.py merge --model Qwen/Qwen3-0.6B --adapter runs/Qwen3-0.6B/soft --out merged/soft
    python sample.py numbers --model tests/tiny --prompts data/ood.jsonl --n 100 --out small.jsonl   # seconds

The first four write JSONL rows with axis (the command), model, method ("base", the name of the adapter's folder,
"ssot", or both as "soft+ssot"), ssot (true or false), tokens (drawn, end tokens included) and seconds, and

`numbers`, per prompt of a file: the prompt's own row, n and
    draws           {answer: count}; an answer cut at --max-tokens ends in "…", here as in open
    logit_kl        KL(target || model) at the prefixes of the target's trie, nats per token (logit_kl below)
    logit_kl_floor  what a perfect sampler would score there (trie.kl_floor): it is not 0
`open`, per prompt of 102 such as "Pick one planet at random.", or of --prompts (rows with a "prompt"): n, draws and
    support_90      how many of the most probable first tokens hold 90 % of the probability
    top             the most probable first tokens, [[text, probability], ...]
`mcq`, per generation, all of one prompt that asks for a medical question in a fixed form:
    text            the raw text, cut or not
`--ssot` (numbers and open) asks the same through String Seed of Thought (Misaki and Akiba, arXiv 2510.21150):
    the model writes a random string, reasons from it, and answers inside tags, with thinking on where the chat
    template has it. The keys of draws are then the raw texts, and there are no exact probabilities (null).
`novelty` writes rows in NoveltyBench's own form (arXiv 2504.05228), for metrics.py or that benchmark's tools to judge:
    the columns of the prompt's row, model (of an adapter "MODEL + soft"), and
    generations     --n raw texts, cut or not
`retention` runs lm-evaluation-harness, on its own terms (no chat template, greedy), in windows of at most 4096 tokens,
    and writes its result file of each task, DIR/<task>.json. Data sets are fetched before the model is loaded. Where
    the package tinyBenchmarks is not installed, plain accuracies stand in for its gp-IRT estimates, and say so.
`merge` writes a checkpoint, in float32 on a CPU and bfloat16 on a GPU.

Everything is drawn at temperature 1 over the full vocabulary, whatever the checkpoint's generation_config says.
Short answers never go through `generate`: all draws of a prompt walk down together, one row per *distinct* prefix,
so 1000 draws cost what their distinct prefixes cost. Long ones (mcq, novelty, --ssot) do, in batches of --rows.
Every draw has its own random numbers, so --rows changes nothing but the rounding of sums: a draw that falls within it
of the border between two tokens can go the other way, which is rare in float32 and less so in bfloat16.

Choices where the paper leaves room: the prompts of `open`, `mcq` and `--ssot` are this kit's own words. The logit KL
is taken over 128 equally probable paths (--paths) where the published code takes four random ones; a trie with no
more leaves than that is covered whole.

What this file does not do: say how good the answers are (metrics.py). Interrupted, it goes on where it
stopped: finished rows wait in FILE.partial, and FILE appears when all are there; finished tasks are not run again.
"""

import argparse
import hashlib
import itertools
import json
import shutil
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList

import trie
from distributions import (
    InputError,
    Parser,
    canonical_outputs,
    check_texts,
    natural,
    perfect_probs,
    positive_int,
    prompt_rng,
    read_prompts,
    read_rows,
    run,
    write_text,
)

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
WORDINGS = tuple(
    f"{wording} Output ONLY the answer."
    for wording in (
        "Name a random {}.",
        "Pick one {} at random.",
        "Give me a random {}.",
        "Choose any {} at random.",
        "Tell me one randomly chosen {}.",
        "I need a random {}.",
    )
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
SSOT = """{task}

Answer in three steps. First write a random string of letters and digits between <random_string> and \
</random_string>. Then, between <thinking> and </thinking>, derive your choice from that string alone, so that \
over many strings the choices follow the requested distribution. Last, put the answer, and ONLY the answer, \
between <answer> and </answer>."""

PLAIN = "mean, since tinyBenchmarks is not installed"  # said in the result file of a task whose score is not gp-IRT
NOVELTY_BENCH = "yimingzhang/novelty-bench"
TASKS = (
    "tinyArc", "tinyGSM8k", "tinyMMLU", "tinyWinogrande", "tinyHellaswag", "tinyTruthfulQA",  # group tinyBenchmarks
    "paloma_wikitext_103", "paloma_c4_en", "paloma_dolma-v1_5", "paloma_mc4", "paloma_ptb", "paloma_redpajama",
    "paloma_falcon-refinedweb",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------- drawing


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
def generate(model, prompts: list[list[int]], end: int, uniform: np.ndarray) -> list[list[int]]:
    """One answer to each prompt by the library's `generate`: token ids, up to the end token or max_tokens of them.

    uniform (R, max_tokens): row i draws its tokens with its own random numbers, by `choose`. What `generate` is left
    to take greedily is that choice, so none of its own sampling options can act. Equal prompts are read once.
    """
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    owner = torch.tensor([distinct.index(tuple(prompt)) for prompt in prompts], device=model.device)
    prefix = trie.prefill(model, [list(prompt[:-1]) for prompt in distinct]).fork(owner)  # `generate` reads the last
    width = prefix.mask.shape[1] + 1
    ids = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    numbers = torch.from_numpy(uniform).to(model.device)
    rows = torch.arange(len(prompts), device=model.device)

    def pick(input_ids, logits):
        tokens = choose(logits, rows, numbers[:, input_ids.shape[1] - width])
        return torch.full_like(logits, -torch.inf).scatter(1, tokens[:, None], 0.0)

    out = model.generate(
        input_ids=ids, attention_mask=torch.cat([prefix.mask, torch.ones_like(ids[:, :1])], 1),
        past_key_values=prefix.cache, do_sample=False, logits_processor=LogitsProcessorList([pick]),
        max_new_tokens=uniform.shape[1], eos_token_id=end, pad_token_id=end,
    )[:, width:].tolist()  # fmt: skip
    return [path[: path.index(end) + 1] if end in path else path for path in out]


def written(tokenizer, path, end: int, mark: str = "…") -> str:
    """The text of a drawn path; one that was cut before its end token ends in `mark`."""
    return trie.decode(tokenizer, path[:-1]) if path[-1] == end else trie.decode(tokenizer, path) + mark


# ------------------------------------------------------------------------------------------- exact probabilities


@torch.inference_mode()
def logit_kl(model, prompt: trie.Prefix, tree: trie.Trie, paths: int, rows: int) -> float:
    """KL(target || model) in nats per token, in expectation over the target's paths.

    At each prefix sum_c q(c) (log q(c) - log p(c)) over its children c, with p over the full vocabulary;
    averaged over the prefixes of a path; then over all leaves by their probability or, where there are more
    than `paths`, over those at the quantiles (i + 1/2) / paths. (arXiv 2605.11845 averages over random paths.)
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


def exact_numbers(model, tokenizer, end: int, row: dict, prompt: trie.Prefix, args) -> dict:
    texts, probs = canonical_outputs(row["family"], row["params"])
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    floor = trie.kl_floor(tree.probs, perfect_probs(row["family"], row["params"])[tree.order], tree.lengths)
    return {"logit_kl": logit_kl(model, prompt, tree, args.paths, args.rows), "logit_kl_floor": floor}


def support_size(probs: np.ndarray, mass: float = 0.9) -> int:
    """How many of the most probable outcomes hold `mass` of the probability. probs (V,), in any order.

    Ties do not matter: whichever of two equal outcomes comes first, the count is the same.
    """
    held = np.cumsum(np.sort(probs[probs > 0].astype(np.float64))[::-1])
    return int(np.searchsorted(held, mass * held[-1] * (1 - 1e-12))) + 1  # the factor forgives the sum's rounding


def exact_open(model, tokenizer, end: int, row: dict, prompt: trie.Prefix, args) -> dict:
    probs = prompt.logits[0].double().softmax(-1).cpu().numpy()
    top = np.argsort(-probs, kind="stable")[:20]
    return {"support_90": support_size(probs), "top": [[trie.decode(tokenizer, [t]), probs[t]] for t in top.tolist()]}


EXACT = {  # command -> what reads the model's own probabilities, and the keys that it adds to a row
    "numbers": (exact_numbers, ("logit_kl", "logit_kl_floor")),
    "open": (exact_open, ("support_90", "top")),
}

# --------------------------------------------------------------------------------------------------- the rows


def walked(model, tokenizer, end: int, prompts: list[dict], args):
    """Result rows of `numbers` and `open`, prompt by prompt: args.n draws and the exact probabilities."""
    for row in prompts:
        start = time.perf_counter()
        with torch.inference_mode():
            prompt = trie.prefill(model, [trie.chat_ids(tokenizer, row["prompt"])])
        paths = draw(model, prompt, end, args.n, args.max_tokens, prompt_rng(args.seed, row["id"]), args.rows)
        draws = Counter()
        for path, count in paths.items():
            draws[written(tokenizer, path, end)] += count
        result = {"n": args.n, "draws": dict(sorted(draws.items()))}
        result |= EXACT[args.command][0](model, tokenizer, end, row, prompt, args)
        tokens = sum(len(path) * count for path, count in paths.items())
        yield result | {"tokens": tokens, "seconds": round(time.perf_counter() - start, 3)}


def generated(model, tokenizer, end: int, prompts: list[dict], args):
    """Result rows of `mcq`, `novelty` and `--ssot`, prompt by prompt, from batches that go across prompts."""
    ssot, draws = getattr(args, "ssot", False), 1 if args.command == "mcq" else args.n
    protocol = SSOT if ssot else "{task}"
    asked = dict.fromkeys(row["prompt"] for row in prompts)
    ids = {prompt: trie.chat_ids(tokenizer, protocol.format(task=prompt), thinking=ssot) for prompt in asked}
    # Where the template itself opens the thoughts, the kept text must show it, or a thought would pass for an answer.
    opened = {p: "<think>" * trie.decode(tokenizer, i).rstrip().endswith("<think>") for p, i in ids.items()}
    jobs = [(row, j) for row in prompts for j in range(draws)]
    answers, tokens, seconds = [], 0, 0.0
    for first in range(0, len(jobs), args.rows):
        batch = jobs[first : first + args.rows]
        start = time.perf_counter()
        streams = [prompt_rng(args.seed, f"{row['id']}/{j}").random(args.max_tokens) for row, j in batch]
        paths = generate(model, [ids[row["prompt"]] for row, _ in batch], end, np.stack(streams))
        share = (time.perf_counter() - start) / len(batch)
        for (row, j), path in zip(batch, paths, strict=True):
            answers.append(opened[row["prompt"]] + written(tokenizer, path, end, "…" if ssot else ""))
            tokens, seconds = tokens + len(path), seconds + share
            if j < draws - 1:
                continue
            spent = {"tokens": tokens, "seconds": round(seconds, 3)}
            if ssot:
                draws_of = {"n": args.n, "draws": dict(Counter(answers))}
                yield draws_of | dict.fromkeys(EXACT[args.command][1]) | spent
            else:
                yield {"generations": answers} if args.command == "novelty" else {"text": answers[0]} | spent
            answers, tokens, seconds = [], 0, 0.0


def hub_prompts(split: str) -> list[dict]:
    """NoveltyBench's own prompts: its curated 100, or 1000 from WildChat. Raises InputError."""
    try:
        from datasets import load_dataset

        return [dict(row) for row in load_dataset(NOVELTY_BENCH, split=split)]
    except ImportError:
        raise InputError("the package datasets is missing: pip install -r requirements-benchmarks.txt") from None
    except (OSError, ValueError) as error:
        reason = f"cannot load the data set {NOVELTY_BENCH}: {trie.one_line(error)}"
        raise InputError(f"{reason}; without a network, give the prompts by --prompts FILE.jsonl") from None


def prompt_rows(args) -> list[dict]:
    """What is to be asked, one row per row of the output. Raises InputError, of a file with file:line."""
    if args.command == "numbers":
        return read_prompts(args.prompts)
    if args.command == "mcq":
        return [{"id": f"mcq-{i:04d}", "prompt": MCQ} for i in range(args.n)]
    numbers = itertools.count()

    def check(row):
        row.setdefault("id", f"{args.command}-{next(numbers):03d}")
        check_texts(row, "id", "prompt")
        return f"id {row['id']!r}"

    if args.prompts:
        return read_rows(args.prompts, ("prompt",), check)
    if args.command == "novelty":
        rows = hub_prompts(args.split)
        for row in rows:
            check(row)
        return rows
    return [
        {"id": f"open-{i:03d}", "category": category, "prompt": WORDINGS[i % len(WORDINGS)].format(category)}
        for i, category in enumerate(CATEGORIES)
    ]


def run_inputs(args, prompts: list[dict] = ()) -> dict[str, str]:
    """What a run depends on besides its options: digests of its files and prompts."""
    files = ("adapter_config.json", "adapter_model.safetensors")
    adapter = [Path(args.adapter) / name for name in files] if args.adapter else []
    inputs = trie.digests(adapter) | {"prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest()}
    for file in sorted(Path(args.model).glob("*.safetensors")):  # of a local model; too large to read once more
        inputs[str(file)] = f"{file.stat().st_size} bytes, {file.stat().st_mtime_ns}"
    return inputs


# -------------------------------------------------------------------------------- retention, and a merged checkpoint


def retention(args) -> None:
    """Run tasks of lm-evaluation-harness; write its results, DIR/<task>.json for each. Finished tasks are kept.

    Raises InputError for what could not be run, after all that could.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import handle_non_serializable
    except ImportError:
        raise InputError("lm_eval is missing: pip install -r requirements-benchmarks.txt") from None
    try:
        import tinyBenchmarks
    except ImportError:  # its tasks import it too, though all that they need it for is the last step, gp-IRT
        tinyBenchmarks = sys.modules["tinyBenchmarks"] = types.ModuleType("tinyBenchmarks")
    gp_irt = hasattr(tinyBenchmarks, "evaluate")
    out, device = Path(args.out).resolve(), trie.default_device()
    files = {name: out / f"{Path(name).stem}.json" for name in args.tasks}
    if len(set(files.values())) < len(args.tasks):
        raise InputError("--tasks: two of them would be written to the same file")
    whole = argparse.Namespace(command="retention", model=args.model, adapter=args.adapter)  # whatever the tasks
    record = out.with_name(out.name + ".run.json")
    trie.begin_run(record, whole, device, run_inputs(args), [out] if out.exists() else [])

    # Every data set is fetched before the model is, so that what is missing shows at once and not after hours.
    manager, todo, failed = TaskManager(), {}, {}
    for name, file in files.items():
        if file.exists() and not (gp_irt and PLAIN in file.read_text()):
            continue
        try:
            todo[name] = list(manager.load([name])["tasks"].values())
        except FileNotFoundError as error:  # what the package datasets raises where a set is gated, or is not there
            advice = "If it is gated, accept its terms on the hub and log in (hf auth login, or HF_TOKEN)"
            failed[name] = f"{trie.one_line(error)} {advice}"
        except OSError as error:
            advice = f"check the network and run this again; finished tasks are kept in {out}"
            raise InputError(f"{name}: {trie.one_line(error)}; {advice}") from None
        except Exception as error:  # a task is a program: it may raise anything
            failed[name] = f"{type(error).__name__}: {trie.one_line(error)}"
    if todo:
        model = trie.load_model(args.model, args.adapter, device)
        # Longer texts are read in windows: the logits of Qwen3's whole context would take 25 GB.
        window = min(4096, model.config.get_text_config().max_position_embeddings)
        batch = "auto" if device.type == "cuda" else 8
        harness = HFLM(model, tokenizer=trie.load_tokenizer(args.model), batch_size=batch, max_length=window)
        adapter = args.adapter and str(Path(args.adapter).resolve())
        arguments = {"pretrained": args.model, "peft": adapter, "max_length": window}
    for name, tasks in todo.items():
        for task in () if gp_irt else tasks:
            for metric in task.config.metric_list:
                if getattr(metric["aggregation"], "__name__", "").startswith("agg_gpirt"):
                    task.aggregation()[metric["metric"]] = lm_eval.api.metrics.mean
                    metric["aggregation"] = PLAIN
        try:
            options = {"model_args": arguments, "tasks": tasks, "task_manager": manager, "log_samples": False}
            results = lm_eval.simple_evaluate(harness, **options)
        except Exception as error:  # the other tasks can still run
            failed[name] = f"{type(error).__name__}: {trie.one_line(error)}"
            continue
        out.mkdir(parents=True, exist_ok=True)
        write_text(files[name], json.dumps(results, indent=1, default=handle_non_serializable) + "\n")
    if failed:
        reasons = "; ".join(dict.fromkeys(failed.values()))
        raise InputError(f"{', '.join(failed)} did not run: {reasons}; run this again to add what is missing")


def merge(args) -> None:
    """Write the checkpoint whose weights have the adapter's in them, for tools that take no adapters.

    Its generation_config is plain sampling that stops at the template's end token: the base checkpoint's (a top_k of
    20, say) would bend the distribution again.
    """
    out = Path(args.out)
    if out.exists():
        raise InputError(f"{out} is there already; remove it first")
    tokenizer, model = trie.load_tokenizer(args.model), trie.load_model(args.model, args.adapter).merge_and_unload()
    end = trie.end_token(tokenizer)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=end)
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.replace(out)


def main() -> None:
    parser = Parser(description=__doc__)
    about = {
        "numbers": (1000, "draws and logit KL for number prompts"),
        "open": (100, "draws and the first step's distribution for open questions"),
        "mcq": (1000, "generated medical multiple-choice questions"),
        "novelty": (10, "answers to NoveltyBench's prompts"),
        "retention": (None, "results of lm-evaluation-harness"),
        "merge": (None, "a checkpoint that has the adapter in it"),
    }
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(about))
    for name, (n, what) in about.items():
        sub = commands.add_parser(name, help=what)
        sub.add_argument("--model", required=True, help="hub id or folder of a chat model")
        own = "PEFT adapter folder; its name becomes the method (default: the base model)"
        sub.add_argument("--adapter", required=name == "merge", help=own)
        sub.add_argument("--out", required=True, help="JSONL file to write" if n else "folder to write")
        if name == "retention":
            own = "tasks of the harness or YAML files with one (default: tinyBenchmarks and seven slices of PALOMA)"
            sub.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK", help=own)
        if not n:
            continue
        sub.add_argument("--n", type=positive_int, default=n, help=f"draws, per prompt if there are many (default {n})")
        source = sub.add_mutually_exclusive_group(required=name == "numbers")
        if name != "mcq":
            own = "prompt rows (unseen.jsonl, ood.jsonl)" if name == "numbers" else "prompts of your own instead"
            source.add_argument("--prompts", nargs="+", metavar="FILE", help=own)
        if name == "novelty":
            own = "the benchmark's 100 or 1000 prompts, from the hub (default curated)"
            source.add_argument("--split", choices=("curated", "wildchat"), default="curated", help=own)
        if name in EXACT:
            sub.add_argument("--ssot", action="store_true", help="ask through String Seed of Thought")
        if name == "numbers":
            sub.add_argument("--paths", type=positive_int, default=128, help="paths for the logit KL (default 128)")
        cut = "cut an answer here (default 32 for numbers, 16 for open, 256 for mcq, 512 for novelty, 2048 for --ssot)"
        sub.add_argument("--max-tokens", type=positive_int, help=cut)
        rows = "most sequences in one forward pass (default 1024, of long generations 256)"
        sub.add_argument("--rows", type=positive_int, help=rows)
        sub.add_argument("--seed", type=natural, default=0)
    args = parser.parse_args()
    adapter = [Path(args.adapter).resolve().name] if args.adapter else []
    if adapter and (adapter[0] in ("base", "ssot") or adapter[0].startswith("target")):
        raise InputError(f"an adapter called {adapter[0]!r} would be taken for another method; rename its folder")
    if args.command in ("retention", "merge"):
        return retention(args) if args.command == "retention" else merge(args)
    ssot = getattr(args, "ssot", False)
    walks = args.command in EXACT and not ssot
    tokens = {"numbers": 32, "open": 16, "mcq": 256, "novelty": 512}
    args.max_tokens = args.max_tokens or (2048 if ssot else tokens[args.command])
    args.rows = args.rows or (1024 if walks else 256)

    method = "+".join(adapter + ["ssot"] * ssot) or "base"
    if args.command == "novelty":  # NoveltyBench's rows have no other place for the method
        source = {"model": " + ".join([args.model, *adapter])}
    else:
        source = {"axis": args.command, "model": args.model, "method": method, "ssot": ssot}
    prompts = prompt_rows(args)
    tokenizer = trie.load_tokenizer(args.model)
    end, model = trie.end_token(tokenizer), trie.load_model(args.model, args.adapter)
    results = walked if walks else generated

    def answer(todo: list[dict]) -> Iterator[dict]:
        for row, result in zip(todo, results(model, tokenizer, end, todo, args), strict=True):
            yield row | source | result

    trie.write_rows(Path(args.out), args, run_inputs(args, prompts), prompts, answer, f"{args.command}, {method}")


if __name__ == "__main__":
    run(main)
