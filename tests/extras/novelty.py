"""NoveltyBench (arXiv 2504.05228): of ten answers to a prompt, how many differ, and are they good?

    python tests/extras/novelty.py draw --model Qwen/Qwen3-0.6B --out runs/base/novelty.jsonl
    python tests/extras/novelty.py judge runs/*/novelty.jsonl --out runs/novelty.jsonl

To try `draw` in seconds, use the bundled model and prompts of your own:

    python tests/extras/novelty.py draw --model tests/tiny --prompts FILE --out small.jsonl

`draw` writes rows like those of sample.py, with the axis "novelty". `judge` reads such rows. Beside
each FILE.jsonl it writes FILE/scores.jsonl, with a judgement of every row, in the format that the
benchmark's own tools read. Then it prints, and writes to --out, the mean over the prompts of each
split and, if there are several splits, over all prompts, with 95% bootstrap intervals:

distinct  the number of different answers among the ten
utility   the points per answer of a reader who goes on to the next answer with probability 0.8

If a command was interrupted, run it again: it continues where it stopped.

Two choices of ours, which the benchmark does not specify: short answers are compared without regard
to case, and a reward exactly on a cut gets the points below it. The script needs
requirements-extras.txt, and judges rows of no other axis.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))
import distributions
import metrics
import sample
import trie

PROMPTS = "yimingzhang/novelty-bench"
CLASSIFIER = "yimingzhang/deberta-v3-large-generation-similarity"
TOKENIZERS = {CLASSIFIER: "microsoft/deberta-v3-large"}  # of judges that come without their own
SIMILAR = 0.102  # two answers are the same if the classifier's probability is above this
REWARD = "Skywork/Skywork-Reward-Gemma-2-27B-v0.2"
REWARD_CUTS = (-7.71875, -6.28125, -6.0, -5.71875, -5.5, -5.0, -4.375, -3.4375, -2.046875)

# --------------------------------------------------------------------------- the benchmark's rules


def same_words(a: str, b: str) -> bool | None:
    """Whether two short answers are the same, or None if one of them has more than five words.

    They are the same if their common words are at least half as many as the words of the longer
    answer. About longer answers the classifier decides.
    """
    a, b = a.lower().split(), b.lower().split()
    longer = max(len(a), len(b))
    if longer > 5:
        return None
    common = set(a) & set(b)
    return 2 * len(common) >= longer


def greedy_classes(same: np.ndarray) -> list[int]:
    """The class of each of N answers: the first class whose first member is the same answer.

    An answer without such a class opens a new one. same (N, N) says which answers are the same; it
    is read only above its diagonal.
    """
    classes = []
    firsts = []  # the first member of each class
    for j in range(len(same)):
        matching = [number for number, first in enumerate(firsts) if same[first, j]]
        if matching:
            classes.append(matching[0])
        else:
            classes.append(len(firsts))
            firsts.append(j)
    return classes


def reward_points(reward: float) -> int:
    """The points of a reward, from 1 to 10. On a cut, they are the points below it."""
    return int(np.searchsorted(REWARD_CUTS, reward)) + 1


def utility(generation_scores: list[float], patience: float = 0.8) -> float:
    """sum of patience^i s_i / sum of patience^i, where s_i are the points of answer i.

    An answer that repeats an earlier one has 0 points.
    """
    weights = patience ** np.arange(len(generation_scores))
    return float(np.average(generation_scores, weights=weights))


# -------------------------------------------------------------------------------------- the judges


def load_judge(name: str, labels: int, dtype: torch.dtype) -> tuple:
    """Load a sequence classifier with `labels` labels. Returns (model, tokenizer).

    Its layers are spread over all GPUs, if there are any. Raises InputError if the model cannot be
    loaded, is not a trained classifier of that kind, or has no padding token.
    """
    device_map = "auto" if torch.cuda.is_available() else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS.get(name, name))
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=dtype, device_map=device_map, output_loading_info=True
        )
    except (ImportError, OSError, ValueError) as error:
        raise distributions.InputError(f"cannot load the judge {name!r}: {error}") from None

    # subtle: transformers makes up the weights that a checkpoint lacks, at random.
    missing = info["missing_keys"]
    if missing or model.config.num_labels != labels:
        raise distributions.InputError(
            f"{name!r} is not a trained classifier with {labels} label(s); it lacks {missing}"
        )

    # The score is read at the last token that is not padding.
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise distributions.InputError(f"the tokenizer of {name!r} has no padding token of its own")
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def classify(model, tokenizer, answers: list[str]) -> list[int]:
    """The class of each answer; the classifier judges all pairs of longer answers in one batch."""
    same = np.zeros((len(answers), len(answers)), bool)
    unsure = []
    for j in range(len(answers)):
        for i in range(j):
            known = same_words(answers[i], answers[j])
            if known is None:
                unsure.append((i, j))
            else:
                same[i, j] = known

    def encode(text: str) -> list[int]:
        options = {"add_special_tokens": False, "truncation": True, "max_length": 128}
        return tokenizer(text, **options)["input_ids"]

    if unsure:
        begin, separate = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        ids = []
        for i, j in unsure:
            ids.append(begin + encode(answers[i]) + separate + encode(answers[j]) + separate)
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
        probs = model(**batch).logits.softmax(-1)[:, 1]
        for pair, prob in zip(unsure, probs.tolist(), strict=True):
            same[pair] = prob > SIMILAR
    return greedy_classes(same)


@torch.inference_mode()
def judgement(row: dict, classifier: tuple, rewarder: tuple) -> dict:
    """Judge one row of `draw`. In place of its draws, the result has the benchmark's keys:

    generations        the answers
    partition          the class of each answer; classes are numbered as they first occur
    distinct           the number of classes
    generation_scores  the points of each answer, 0 for one that repeats an earlier one
    partition_scores   the points of the first answer of each class
    utility            what utility() makes of the points

    classifier and rewarder are pairs from load_judge. Raises InputError if a reward is not finite.
    """
    # "…" marks an answer that was cut off; thoughts are not part of the answer.
    texts = [metrics.without_thoughts(draw.removesuffix("…")) for draw in row["draws"]]
    partition = classify(*classifier, texts)
    firsts = [partition.index(number) for number in range(max(partition) + 1)]

    model, tokenizer = rewarder
    question = {"role": "user", "content": row["prompt"]}
    ids = []
    for first in firsts:
        messages = [question, {"role": "assistant", "content": texts[first]}]
        ids.append(trie.encode_one(tokenizer, trie.render(tokenizer, messages)))
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
    rewards = model(**batch).logits[:, 0]
    if not rewards.isfinite().all():
        raise distributions.InputError(
            f"the reward model gives rewards that are not finite for answers to {row['prompt']!r}"
        )
    points = [reward_points(reward) for reward in rewards.tolist()]
    scores = [points[number] if i in firsts else 0 for i, number in enumerate(partition)]

    result = {key: value for key, value in row.items() if key not in ("draws", "tokens", "seconds")}
    result |= {"generations": texts, "partition": partition, "distinct": len(firsts)}
    result |= {"generation_scores": scores, "partition_scores": points, "utility": utility(scores)}
    return result


def report(rows: list[dict], out: Path) -> None:
    """Write and print the means of each model, split and method.

    If there are several splits, the means over all of their prompts follow as the split "all".
    """
    rows = sorted(rows, key=lambda row: (row["model"], row.get("split") or ""))
    if len({row.get("split") for row in rows}) > 1:
        rows += [row | {"split": "all"} for row in rows]
    groups = {}
    for row in rows:
        key = (row["model"], row.get("split"), row["method"])
        groups.setdefault(key, []).append(row)

    scores = []
    table = [("model", "split", "method", "prompts", "distinct", "utility")]
    for (model, split, method), members in groups.items():
        line = [model, split or "–", method, str(len(members))]
        for metric in ("distinct", "utility"):
            values = np.array([row[metric] for row in members], float)
            low, high = metrics.bootstrap(values, np.mean)
            score = {"model": model, "method": method, "axis": "novelty", "split": split}
            score |= {"metric": metric, "value": float(values.mean())}
            score |= {"low": low, "high": high, "n": len(values)}
            scores.append(score)
            line.append(metrics.cell([score]))
        table.append(line)

    distributions.write_text(out, distributions.to_jsonl(scores))
    print("\n".join(metrics.markdown(zip(*table, strict=True))))


# ------------------------------------------------------------------------------------ the commands


def benchmark_prompts(splits: list[str]) -> list[dict]:
    """The prompts of NoveltyBench, from the hub. Raises InputError if they cannot be loaded."""
    rows = []
    try:
        from datasets import load_dataset

        for split in splits:
            rows += [dict(row, split=split) for row in load_dataset(PROMPTS, split=split)]
    except (ImportError, OSError, ValueError) as error:
        raise distributions.InputError(
            f"cannot load the data set {PROMPTS}: {error}; use your own prompts with --prompts FILE"
        ) from None
    return rows


def draw(args) -> None:
    """Draw the answers to NoveltyBench's prompts, or to your own."""
    distributions.must_be_new(Path(args.out))
    if args.prompts:
        asked = sample.own_prompts(args.prompts, args.axis)
    else:
        asked = benchmark_prompts(args.split)
    sample.draw(args, asked)


def check_answers(files: list[Path]) -> None:
    """Raises InputError if the rows of the files cannot be judged and compared."""
    keys = ("id", "prompt", "model", "method", "axis", "draws")
    rows = distributions.read_rows(files, keys, metrics.name_of_row)
    metrics.check_same_prompts(rows)
    if {row["axis"] for row in rows} != {"novelty"}:
        raise distributions.InputError("expected rows of `novelty.py draw`, and no others")
    if len({len(row["draws"]) for row in rows}) > 1:
        raise distributions.InputError(
            "the rows have different numbers of answers; draw them alike"
        )
    for file in files:  # judgements are kept by the prompt's id, so a file may have each only once
        distributions.read_rows([file], name=lambda row: row["id"])


def judge(args) -> None:
    """Judge the rows that have not been judged yet; write and print the means."""
    if args.out.exists() and "metric" not in distributions.read_rows([args.out])[0]:
        raise distributions.InputError(f"{args.out} is not a file of scores; choose another --out")
    check_answers(args.files)

    # A result must be about these answers, by these judges and this file's rules; otherwise it is
    # an error.
    judges = {"classifier": trie.identity(args.classifier), "reward": trie.identity(args.reward)}
    judges["rules"] = distributions.digest(__file__)
    targets = []
    missing = []
    for file in args.files:
        target = file.with_suffix("") / "scores.jsonl"
        targets.append(target)
        inputs = judges | {"rows": distributions.digest(file)}
        if not target.exists():
            missing.append((file, target, inputs))
            continue
        record = json.loads(target.with_suffix(".run.json").read_text())
        if record["inputs"] != inputs:
            raise distributions.InputError(
                f"{target} was made from other answers or by another judge; "
                "to judge again, remove it"
            )

    if missing:
        judge_files(missing, args)
    report(distributions.read_rows(targets), args.out)


def judge_files(files: list[tuple[Path, Path, dict]], args) -> None:
    """Judge the rows of each file. files: (the file, the file to write, its inputs)."""
    # In bfloat16, SIMILAR would lie between two neighbouring numbers.
    classifier = load_judge(args.classifier, 2, torch.float32)
    reward_dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    rewarder = load_judge(args.reward, 1, reward_dtype)

    def answer(rows: list[dict]) -> list[dict]:
        return [judgement(row, classifier, rewarder) for row in rows]

    no_options = argparse.Namespace()
    for file, target, inputs in files:
        rows = distributions.read_rows([file])
        sample.write_rows(target, no_options, inputs, rows, answer, together=1)


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="draw|judge")

    drawing = commands.add_parser("draw", help="draw answers to the benchmark's prompts")
    drawing.set_defaults(axis="novelty", protocol=None)
    add = drawing.add_argument
    add("--model", required=True, help="hub id or folder of a chat model")
    add("--adapter", help="PEFT adapter folder; its name is the method (default: the base model)")
    splits = "curated (100 prompts, the default) or wildchat (1000), or both"
    add("--split", nargs="+", default=["curated"], help=splits)
    add("--prompts", nargs="+", metavar="FILE", help="your own instead: JSONL, or a JSON list")
    add("--n", type=int, default=10, help="answers to each prompt (10)")
    add("--max-tokens", type=int, default=512, help="cut an answer here (512)")
    add("--rows", type=int, default=256, help="draws that walk at once, to limit memory (256)")
    add("--seed", type=int, default=0)
    add("--out", required=True, help="JSONL file to write")

    judging = commands.add_parser("judge", help="judge such answers, and print the means")
    add = judging.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="rows of `draw`, of any splits")
    add("--classifier", default=CLASSIFIER, help="judges which answers are the same (%(default)s)")
    add("--reward", default=REWARD, help="judges how good they are (%(default)s, 54 GB)")
    add("--out", required=True, type=Path, help="JSONL file for the means")

    args = parser.parse_args()
    if args.command == "draw":
        draw(args)
    else:
        judge(args)


if __name__ == "__main__":
    distributions.run(main)
