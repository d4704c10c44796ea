"""NoveltyBench (arXiv 2504.05228): ten answers to each prompt; how many of them differ, and what are they worth?

    python tests/extras/novelty.py draw --model Qwen/Qwen3-0.6B --out runs/Qwen3-0.6B/base/novelty.jsonl
    python tests/extras/novelty.py judge runs/Qwen3-0.6B/*/novelty.jsonl --out runs/Qwen3-0.6B/novelty.jsonl
    python tests/extras/novelty.py draw --model tests/tiny --prompts data/ood.jsonl --out small.jsonl          # seconds

`draw` writes rows of sample.py, with the axis "novelty". `judge` puts what it finds beside each FILE.jsonl, row by row,
as the benchmark's own tools read it: FILE/scores.jsonl. It writes and prints, with 95 % bootstrap intervals, the means
over the prompts of each split and, where there are both, of all: `distinct`, the classes among the ten, and `utility`,
the points per answer of a reader who goes on to the next one with probability .8. Killed, both go on when run again.

Choices where the benchmark leaves room: case does not count where short answers are compared, and a reward on a cut
gets the points below it. What this file does not do: judge other axes. It needs requirements-extras.txt.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))
import metrics
import sample
import trie
from distributions import InputError, Parser, digest, read_rows, refuse, run, to_jsonl, write_text

PROMPTS = "yimingzhang/novelty-bench"
CLASSIFIER = "yimingzhang/deberta-v3-large-generation-similarity"
TOKENIZERS = {CLASSIFIER: "microsoft/deberta-v3-large"}
SIMILAR = 0.102  # the classifier's probability above which two answers are the same
REWARD = "Skywork/Skywork-Reward-Gemma-2-27B-v0.2"
REWARD_CUTS = (-7.71875, -6.28125, -6.0, -5.71875, -5.5, -5.0, -4.375, -3.4375, -2.046875)
reward_points = lambda reward: (
    int(np.searchsorted(REWARD_CUTS, reward)) + 1
)  # 1 to 10; on a cut, what is below it


def same_words(a: str, b: str) -> bool | None:
    """Whether two answers share half of the longer one's words; None where it has over five: ask the classifier."""
    a, b = a.lower().split(), b.lower().split()
    longer = max(len(a), len(b))
    return 2 * len(set(a) & set(b)) >= longer if longer <= 5 else None


def greedy_classes(same: np.ndarray) -> list[int]:
    """Each answer's class: the first one whose first member is the same, else a new one. same (N, N), read at i < j."""
    classes = []
    for j in range(len(same)):
        alike = [k for i, k in enumerate(classes) if same[i, j] and classes.index(k) == i]
        classes.append(alike[0] if alike else len(set(classes)))
    return classes


def utility(generation_scores: list[float], patience: float = 0.8) -> float:
    """Sum of patience^i s_i / sum of patience^i; s_i: points of answer i, 0 if it repeats an earlier one."""
    return float(
        np.average(generation_scores, weights=patience ** np.arange(len(generation_scores)))
    )


def load_judge(name: str, labels: int, dtype: torch.dtype) -> tuple:
    """A sequence classifier, over all GPUs where there are any, and its tokenizer. Raises InputError."""
    options = {"dtype": dtype, "device_map": "auto" if torch.cuda.is_available() else None}
    try:
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS.get(name, name))
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, **options
        )
    except (ImportError, OSError, ValueError) as error:
        raise InputError(f"cannot load the judge {name!r}: {error}") from None
    if (
        info["missing_keys"] or model.config.num_labels != labels
    ):  # subtle: missing ones were made up at random
        raise InputError(
            f"{name!r} is no trained classifier with {labels} label(s); missing {info['missing_keys']}"
        )
    if tokenizer.pad_token_id in (
        None,
        tokenizer.eos_token_id,
    ):  # the score is read at the last token but padding
        raise InputError(f"the tokenizer of {name!r} has no padding token of its own")
    tokenizer.padding_side, model.config.pad_token_id = "right", tokenizer.pad_token_id
    return model.eval(), tokenizer


def classify(model, tokenizer, answers: list[str]) -> list[int]:
    """The class of each answer."""
    encode = lambda text: tokenizer(
        text, add_special_tokens=False, truncation=True, max_length=128
    )["input_ids"]
    start, between = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    same = {(a, b): same_words(a, b) for j, b in enumerate(answers) for a in answers[:j]}
    if unsure := [pair for pair, known in same.items() if known is None]:
        ids = [start + encode(a) + between + encode(b) + between for a, b in unsure]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
        similar = model(**batch).logits.softmax(-1)[:, 1] > SIMILAR
        same |= dict(zip(unsure, similar.tolist(), strict=True))
    return greedy_classes(np.array([[same.get((a, b), False) for b in answers] for a in answers]))


@torch.inference_mode()
def judgement(row: dict, classifier: tuple, rewarder: tuple) -> dict:
    """A row of `draw` in the benchmark's form, with what the two models say of it. Raises InputError."""
    texts = [text.removesuffix("…") for text in row["draws"]]  # the mark of an answer that was cut
    partition = classify(*classifier, texts)
    firsts = [partition.index(k) for k in range(max(partition) + 1)]

    model, tokenizer = rewarder
    question = {"role": "user", "content": row["prompt"]}
    talks = [[question, {"role": "assistant", "content": texts[i]}] for i in firsts]
    ids = [trie.encode_one(tokenizer, trie.render(tokenizer, talk)) for talk in talks]
    rewards = model(
        **tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
    ).logits[:, 0]
    if not rewards.isfinite().all():
        raise InputError(
            f"the reward model gives rewards that are not finite, to the answers to {row['prompt']!r}"
        )
    points = [reward_points(reward) for reward in rewards.tolist()]
    scores = [points[k] if i in firsts else 0 for i, k in enumerate(partition)]
    kept = {key: value for key, value in row.items() if key not in ("draws", "tokens", "seconds")}
    kept |= {"generations": texts, "partition": partition, "distinct": len(firsts)}
    return kept | {
        "generation_scores": scores,
        "partition_scores": points,
        "utility": utility(scores),
    }


def report(rows: list[dict], out: Path) -> None:
    """Write and print the means of every model, split and method and, where there are several splits, of all."""
    rows = sorted(rows, key=lambda row: (row["model"], row.get("split") or ""))
    if len({row.get("split") for row in rows}) > 1:
        rows += [row | {"split": "all"} for row in rows]
    groups, scores, lines = {}, [], [("model", "split", "method", "prompts", "distinct", "utility")]
    for row in rows:
        groups.setdefault((row["model"], row.get("split"), row["method"]), []).append(row)
    for (model, split, method), own in groups.items():
        for metric in ("distinct", "utility"):
            values = np.array([row[metric] for row in own], float)
            low, high = metrics.bootstrap(values, np.mean)
            result = {
                "model": model,
                "method": method,
                "axis": "novelty",
                "split": split,
                "metric": metric,
            }
            scores.append(
                result | {"value": float(values.mean()), "low": low, "high": high, "n": len(values)}
            )
        lines.append(
            (
                model,
                split or "–",
                method,
                str(len(own)),
                *(metrics.cell([score]) for score in scores[-2:]),
            )
        )
    write_text(out, to_jsonl(scores))
    print("\n".join(metrics.markdown(zip(*lines, strict=True))))


def draw(args) -> None:
    refuse(Path(args.out), Path(args.out))
    asked = sample.own_prompts(args.prompts, args.axis) if args.prompts else []
    try:
        if not args.prompts:
            from datasets import load_dataset

            asked = [
                dict(row, split=split)
                for split in args.split
                for row in load_dataset(PROMPTS, split=split)
            ]
    except (ImportError, OSError, ValueError) as error:
        raise InputError(
            f"cannot load the data set {PROMPTS}: {error}; give yours by --prompts FILE"
        ) from None
    sample.draw(args, asked)


def judge(args) -> None:
    """Judge what is not judged yet; write and print the means."""
    if args.out.exists() and "metric" not in read_rows([args.out])[0]:
        raise InputError(f"{args.out} is no file of scores; choose another --out")
    keys = ("id", "prompt", "model", "method", "axis", "draws")
    metrics.check_same_prompts(
        read_rows(args.files, keys, lambda row: f"{row['method']} on {row['id']} ({row['model']})")
    )

    judges = {"classifier": trie.identity(args.classifier), "reward": trie.identity(args.reward)}
    inputs = {
        file.with_suffix("") / "scores.jsonl": judges | {"rows": digest(file)}
        for file in args.files
    }
    for target, made in inputs.items():
        if (
            target.exists()
            and json.loads(target.with_suffix(".run.json").read_text())["inputs"] != made
        ):
            raise InputError(
                f"{target} is about other answers or by another judge; remove it to judge anew"
            )

    if todo := [
        (file, target)
        for file, target in zip(args.files, inputs, strict=True)
        if not target.exists()
    ]:
        classifier = load_judge(
            args.classifier, 2, torch.float32
        )  # in bfloat16, SIMILAR lies between two numbers
        rewarder = load_judge(
            args.reward, 1, torch.bfloat16 if torch.cuda.is_available() else torch.float32
        )
        options = argparse.Namespace(model=args.reward, judged_by=digest(__file__))
        answer = lambda rows: (judgement(row, classifier, rewarder) for row in rows)
        for file, target in todo:
            sample.write_rows(target, options, inputs[target], read_rows([file]), answer)
    report(read_rows(inputs), args.out)


def main() -> None:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="draw|judge")
    sub = commands.add_parser("draw", help="answers to the benchmark's prompts")
    sub.set_defaults(axis="novelty", protocol=None)
    sub.add_argument("--model", required=True, help="hub id or folder of a chat model")
    sub.add_argument(
        "--adapter",
        help="PEFT adapter folder; its name becomes the method (default: the base model)",
    )
    sub.add_argument(
        "--split",
        nargs="+",
        default=["curated"],
        help="curated (default: 100 prompts), wildchat (1000)",
    )
    sub.add_argument(
        "--prompts", nargs="+", metavar="FILE", help="yours, in their place: JSONL or a JSON list"
    )
    sub.add_argument("--n", type=int, default=10, help="answers to each prompt (default 10)")
    sub.add_argument("--max-tokens", type=int, default=512, help="cut an answer here (default 512)")
    sub.add_argument("--rows", type=int, default=256, help="most answers in one pass (default 256)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", required=True, help="JSONL file to write")
    sub = commands.add_parser("judge", help="classes, points and means of such answers")
    sub.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="rows of `draw`, of one split or several",
    )
    sub.add_argument(
        "--classifier", default=CLASSIFIER, help="says which answers are the same (%(default)s)"
    )
    sub.add_argument("--reward", default=REWARD, help="says how good they are (%(default)s, 54 GB)")
    sub.add_argument("--out", required=True, type=Path, help="JSONL file for the means")
    args = parser.parse_args()
    {"draw": draw, "judge": judge}[args.command](args)


if __name__ == "__main__":
    run(main)
