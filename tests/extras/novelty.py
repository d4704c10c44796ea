"""NoveltyBench (arXiv 2504.05228): ten answers to each prompt; how many of them differ, and what are they worth?

    python tests/extras/novelty.py draw --model Qwen/Qwen3-0.6B --out runs/Qwen3-0.6B/base/novelty.jsonl
    python tests/extras/novelty.py judge runs/Qwen3-0.6B/*/novelty.jsonl --out runs/Qwen3-0.6B/novelty.jsonl
    echo '["Name a random city."]' > mine.json                                         # seconds, without the hub
    python tests/extras/novelty.py draw --model tests/tiny --prompts mine.json --max-tokens 40 --out small.jsonl

`draw` writes rows of sample.py, with the axis "novelty". `judge` puts beside each FILE.jsonl what it finds, row by row,
as the benchmark's own tools read it: FILE/scores.jsonl (generations; partition: the class of each; generation_scores:
1 to 10 points of each, 0 for a repeat; utility). It writes and prints the means over prompts, with 95 % bootstrap
intervals, over those of each split and, where there are both, over all:

    distinct   classes among the ten: greedy, each answer compared with each class's first member
    utility    points per answer of a reader who goes on to the next one with probability .8

The benchmark's reward model has 27 billion parameters (54 GB, spread over the GPUs there are); --reward takes another.

Choices where the benchmark leaves room: case does not count where short answers are compared, and a reward on a cut
gets the points below it. What this file does not do: judge other axes. It needs requirements-extras.txt. Killed,
both commands go on where they stopped; judgements of other answers, or by another judge, are refused.
"""

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))
import metrics
import sample
import trie
from distributions import InputError, Parser, digest, read_rows, run, to_jsonl, write_text

PROMPTS = "yimingzhang/novelty-bench"
CLASSIFIER = "yimingzhang/deberta-v3-large-generation-similarity"
CLASSIFIER_TOKENIZER = "microsoft/deberta-v3-large"
SIMILAR = 0.102  # the classifier's probability above which two answers are the same
REWARD = "Skywork/Skywork-Reward-Gemma-2-27B-v0.2"
REWARD_CUTS = (-7.71875, -6.28125, -6.0, -5.71875, -5.5, -5.0, -4.375, -3.4375, -2.046875)


def same_words(a: str, b: str) -> bool | None:
    """Whether two answers of at most five words are the same: common words are half of the longer one's, or more.
    None where one is longer, which is for the classifier to say. Case does not count."""
    a, b = a.lower().split(), b.lower().split()
    longer = max(len(a), len(b))
    return 2 * len(set(a) & set(b)) >= longer if longer <= 5 else None


def greedy_classes(same: np.ndarray) -> list[int]:
    """The class of each of N answers: that of the first class whose first member is the same, else a new one.

    same (N, N) bool; what is read of it is [i, j], i < j.
    """
    classes = []
    for j in range(len(same)):
        alike = [k for k in range(len(set(classes))) if same[classes.index(k), j]]
        classes.append(alike[0] if alike else len(set(classes)))
    return classes


def reward_points(reward: float) -> int:
    """1 to 10 points for a raw reward; one that equals a cut gets the points below it."""
    return int(np.searchsorted(REWARD_CUTS, reward)) + 1


def utility(generation_scores: list[float], patience: float = 0.8) -> float:
    """Sum of patience^i s_i / sum of patience^i; s_i: points of answer i, 0 if it repeats an earlier one."""
    return float(np.average(generation_scores, weights=patience ** np.arange(len(generation_scores))))


def load_judge(name: str, labels: int, dtype: torch.dtype) -> tuple:
    """A sequence classifier, over all GPUs where there are any, and its tokenizer. Raises InputError."""
    options = {"dtype": dtype} | ({"device_map": "auto"} if torch.cuda.is_available() else {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(CLASSIFIER_TOKENIZER if name == CLASSIFIER else name)
        model, info = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True, **options)
    except (ImportError, OSError, ValueError) as error:
        raise InputError(f"cannot load the judge {name!r}: {error}") from None
    # subtle: transformers only warns where a checkpoint has no classifier, and makes up random weights.
    if info["missing_keys"] or model.config.num_labels != labels:
        raise InputError(f"{name!r} is no trained classifier with {labels} label(s); missing {info['missing_keys']}")
    # subtle: such models read their score at the last token that is not padding.
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise InputError(f"the tokenizer of {name!r} has no padding token of its own")
    tokenizer.padding_side, model.config.pad_token_id = "right", tokenizer.pad_token_id
    return model.eval(), tokenizer


def classify(model, tokenizer, answers: list[str]) -> list[int]:
    """The class of each answer."""
    encode = lambda text: tokenizer(text, add_special_tokens=False, truncation=True, max_length=128)["input_ids"]
    start, between = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    same = {pair: same_words(*pair) for pair in itertools.combinations(answers, 2)}
    if unsure := [pair for pair, known in same.items() if known is None]:
        ids = [start + encode(a) + between + encode(b) + between for a, b in unsure]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
        similar = model(**batch).logits.softmax(-1)[:, 1] > SIMILAR
        same |= dict(zip(unsure, similar.tolist(), strict=True))
    return greedy_classes(np.array([[same.get((a, b), False) for b in answers] for a in answers]))


def reward(model, tokenizer, prompt: str, answers: list[str]) -> list[int]:
    """1 to 10 points of each answer to a prompt. Raises InputError."""
    talks = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": text}] for text in answers]
    ids = [trie.encode_one(tokenizer, trie.render(tokenizer, talk)) for talk in talks]
    rewards = model(**tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)).logits[:, 0]
    if not rewards.isfinite().all():
        raise InputError(f"the reward model gives rewards that are not finite, to the answers to {prompt!r}")
    return [reward_points(reward) for reward in rewards.tolist()]


@torch.inference_mode()
def judgements(rows: list[dict], classifier: tuple, rewarder: tuple) -> Iterator[dict]:
    """The rows of `draw` in the benchmark's form, with what the two models say of them."""
    for row in rows:
        kept = {key: value for key, value in row.items() if key not in ("draws", "protocol", "tokens", "seconds")}
        texts = [text.removesuffix("…") for text in row["draws"]]  # the mark of an answer that was cut
        partition = classify(*classifier, texts)
        firsts = [partition.index(k) for k in range(max(partition) + 1)]
        points = reward(*rewarder, row["prompt"], [texts[i] for i in firsts])
        scores = [points[k] if i in firsts else 0 for i, k in enumerate(partition)]
        found = {"generations": texts, "partition": partition, "distinct": len(firsts)}
        yield kept | found | {"generation_scores": scores, "partition_scores": points, "utility": utility(scores)}


def means(rows: list[dict]) -> list[dict]:
    """Score rows of every model, method and split and, where there are several splits, of all their prompts."""
    groups, out = {}, []
    for whole, row in itertools.product((False, True), rows):
        groups.setdefault((row["model"], row["method"], "all" if whole else row.get("split")), []).append(row)
    order = lambda key: (key[0], key[2] == "all", key[2] or "")  # methods side by side, as they were given
    for model, method, split in sorted(groups, key=order):
        own = groups[model, method, split]
        if split == "all" and len({row.get("split") for row in own}) == 1:
            continue
        for metric in ("distinct", "utility"):
            values = np.array([row[metric] for row in own], float)
            low, high = metrics.bootstrap(values, np.mean)
            result = {"model": model, "method": method, "axis": "novelty", "split": split, "metric": metric}
            out.append(result | {"value": float(values.mean()), "low": low, "high": high, "n": len(values)})
    return out


def hub_prompts(split: str) -> list[dict]:
    """NoveltyBench's own prompts of a split. Raises InputError."""
    try:
        from datasets import load_dataset

        return [dict(row) | {"split": split} for row in load_dataset(PROMPTS, split=split)]
    except (ImportError, OSError, ValueError) as error:
        advice = "pip install -r requirements-extras.txt, or give the prompts by --prompts FILE"
        raise InputError(f"cannot load the data set {PROMPTS}: {error}; {advice}") from None


def draw(args) -> None:
    out, adapter = Path(args.out), Path(args.adapter).resolve() if args.adapter else None
    trie.refuse(out, out)
    own = args.prompts and sample.own_prompts(args.prompts, args.axis)
    asked = own or [row for split in args.split for row in hub_prompts(split)]

    model, tokenizer, end = trie.load(args.model, args.adapter)
    source = {"model": args.model, "method": adapter.name if adapter else "base", "axis": args.axis}
    inputs = {"prompts": hashlib.sha256(to_jsonl(asked).encode()).hexdigest(), "model": trie.identity(args.model)}
    if adapter:
        inputs["adapter"] = digest(adapter / "adapter_model.safetensors")
    answer = lambda todo: (row | source for row in sample.answers(model, tokenizer, end, todo, args))
    sample.write_rows(out, args, inputs, asked, answer)


def judge(args) -> None:
    """Judge what is not judged yet; write and print the means."""
    out, files = Path(args.out), [Path(file) for file in args.files]
    if out.exists() and "metric" not in read_rows([out])[0]:
        raise InputError(f"{out} is no file of scores; choose another --out")
    keys = ("id", "prompt", "model", "method", "axis", "draws")
    metrics.check_same_prompts(read_rows(files, keys, lambda row: f"{row['method']} on {row['id']} ({row['model']})"))

    judges = {"classifier": trie.identity(args.classifier), "reward": trie.identity(args.reward)}
    inputs = {file.with_suffix("") / "scores.jsonl": judges | {"rows": digest(file)} for file in files}
    for target, made in inputs.items():
        record = target.with_suffix(".run.json")
        if target.exists() and json.loads(record.read_text())["inputs"] != made:
            raise InputError(f"{target} is about other answers or by another judge; remove it to judge anew")

    if todo := [(file, target) for file, target in zip(files, inputs, strict=True) if not target.exists()]:
        # float32 on a GPU too: in bfloat16 the classifier's threshold lies between two numbers.
        classifier = load_judge(args.classifier, 2, torch.float32)
        rewarder = load_judge(args.reward, 1, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
        options = argparse.Namespace(model=args.reward, judged_by=digest(__file__))
        answer = lambda rows: judgements(rows, classifier, rewarder)
        for file, target in todo:
            sample.write_rows(target, options, inputs[target], read_rows([file]), answer)

    scores = means(read_rows(inputs))
    write_text(out, to_jsonl(scores))
    lines = [("model", "split", "method", "prompts", "distinct", "utility")]
    for distinct, worth in zip(scores[::2], scores[1::2], strict=True):
        source = (distinct["model"], distinct["split"] or "–", distinct["method"], str(distinct["n"]))
        lines.append((*source, metrics.cell(distinct), metrics.cell(worth)))
    print("\n".join(metrics.markdown(zip(*lines, strict=True))))


def main() -> None:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="draw|judge")
    sub = commands.add_parser("draw", help="answers to the benchmark's prompts")
    sub.set_defaults(axis="novelty", protocol=None)
    sub.add_argument("--model", required=True, help="hub id or folder of a chat model")
    sub.add_argument("--adapter", help="PEFT adapter folder; its name becomes the method (default: the base model)")
    which = sub.add_mutually_exclusive_group()
    own = "the benchmark's prompts: its curated 100 (default), 1000 from WildChat, or both"
    which.add_argument("--split", nargs="+", choices=("curated", "wildchat"), default=["curated"], help=own)
    which.add_argument("--prompts", nargs="+", metavar="FILE", help="prompts of your own: JSONL or a JSON list")
    sub.add_argument("--n", type=int, default=10, help="answers to each prompt (default 10)")
    sub.add_argument("--max-tokens", type=int, default=512, help="cut an answer here (default 512)")
    sub.add_argument("--rows", type=int, default=256, help="most answers in one pass (default 256)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", required=True, help="JSONL file to write")
    sub = commands.add_parser("judge", help="classes, points and means of such answers")
    sub.add_argument("files", nargs="+", metavar="FILE", help="rows of `draw`, of one split or several")
    sub.add_argument("--classifier", default=CLASSIFIER, help="says which answers are the same (%(default)s)")
    sub.add_argument("--reward", default=REWARD, help="says how good they are (%(default)s)")
    sub.add_argument("--out", required=True, help="JSONL file for the means")
    args = parser.parse_args()
    {"draw": draw, "judge": judge}[args.command](args)


if __name__ == "__main__":
    run(main)
