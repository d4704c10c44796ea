"""Rows in, scores out: how close the answers are to the distributions that were asked for.

    python metrics.py runs/tiny/*/*.jsonl --out scores.jsonl
    python metrics.py runs/tiny/*/*.jsonl --out scores.jsonl --runs runs/tiny/soft runs/tiny/hard --report r.md
    python metrics.py novelty runs/tiny/novelty-curated/soft      # loads two judges; the rest no model
    python metrics.py runs/tiny/retention/*/*.json --out retention.jsonl
    python metrics.py figures runs/tiny/numbers/*.jsonl runs/tiny/open/*.jsonl --runs runs/tiny/soft --out figures

Axis `numbers`. Scores of a prompt (an answer is one of its n draws):
    valid_rate      share of the answers that are, stripped, one decimal number, finite, inside the family's
                    support, and whole where the family is discrete. Read every other figure beside it.
    normalized_w1   W1(valid answers, target) / E|X - median|: 0 perfect, 1 as bad as always answering the
                    median. Defined for Cauchy and Bernoulli(.1), where variance or IQR fail.
    logit_kl        exact, from the model's probabilities, in nats per token (sample.py)
    logit_kl_floor  the logit KL of a perfect sampler, which is not 0 (trie.kl_floor)
    excess_kl       logit_kl - logit_kl_floor: the one to read
    gof_pass_rate   share of prompts not rejected at 1 %: Kolmogorov-Smirnov against the distribution for
                    continuous families, chi-square with cells pooled to 5 expected draws for discrete ones.
                    A prompt without a valid answer is rejected.
Over prompts: the mean within a family; over families the median, or the mean for rates and tokens. Rows of the
method "target" are the same scores of n draws from the true distribution, printed with five decimals: what
sampling noise alone leaves, if all n are valid. A table without them cannot be read.

Axis `open`. Scores of a prompt; there is no target, so no best value: compare with the base.
    valid_rate      share of the draws that are an answer (parse_answer)
    support_90      how many of the most probable first tokens hold 90 % of the probability (sample.py)
    unique_rate     distinct answers / draws; an invalid draw is no answer
    top_share       share of the most frequent answer among the valid ones: 1 is collapse
    number_rate     share of the valid answers that are bare numbers: training on numbers may leak into language,
                    where it looks like variety
Over prompts: the median for support_90, else the mean.

Axis `mcq`, over all generations:
    valid_rate      share that is one question in form (parse_question)
    tv              total variation of the right answer's place from uniform, 1/2 sum |share - 1/4|, valid ones only
    tv_uniform      the expected tv of as many uniform places: what sampling noise alone leaves
    p_value         chi-square test that the places are uniform
    share_a..d      share of each place

Rows with "ssot": true (axes numbers and open) hold raw texts. Only what is inside the answer tags is scored:
    answer_rate     share of the texts with a tagged answer (tagged_answer); the others count as invalid answers
These axes have
    tokens          drawn per answer

Axis `novelty`, NoveltyBench (arXiv 2504.05228). `metrics.py novelty DIR` adds to DIR/generations.jsonl the benchmark's
own files, row by row: partitions.jsonl (partition: the class of each generation, distinct), scores.jsonl
(generation_scores, partition_scores, utility) and summary.json. Files that are there, also its own tools', are used.
    distinct        classes among the ten generations: greedy, each compared with each class's first member, answers
                    of at most five words by their words, others by --classifier
    utility         of generations that --reward gives 1 to 10 points, a repeat 0 (novelty_utility)
Over prompts: the mean.

Axis `retention`: result files of lm-evaluation-harness (sample.py retention, or its own command). One row per task
(in "split") and metric, with stderr, the harness's own, and difference, to the base model, in place of an interval:
    gp-IRT          accuracy on the whole benchmark, estimated from 100 items (tinyBenchmarks, arXiv 2402.14992);
                    "plain ..." where that package was not installed: the accuracy on these 100
    bits_per_byte, word_perplexity   of PALOMA's slices. The paper's are token perplexities at stride 1024: do not
                    compare them with these.

Intervals are 95 %, from 10,000 bootstrap resamples of the families, of the prompts, or of the generations. Writes rows
{model, method, axis, split, metric, value, low, high, n}: n prompts or generations, of which value is made; value is
null where there is none (the distance of nothing valid, say); low and high are null below two.

Choices where the paper (arXiv 2605.11845) or a benchmark leaves room: the normalization of W1 is this kit's, as the
paper's is not published; case does not count in the comparison of short answers, and a reward on a cut gets the points
below it.
What this file does not do: run the model that is measured, or know how rows were made.
"""

import argparse
import gc
import itertools
import json
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from scipy import stats

from distributions import (
    InputError,
    Parser,
    canonical_outputs,
    check_texts,
    prompt_rng,
    read_jsonl,
    read_rows,
    run,
    sample_outputs,
    scipy_args,
    write_jsonl,
    write_text,
)

NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
SIGNIFICANCE = 0.01
LEAST_EXPECTED = 5  # draws per chi-square cell
CLASSIFIER = "yimingzhang/deberta-v3-large-generation-similarity"
CLASSIFIER_TOKENIZER = "microsoft/deberta-v3-large"
TINY = ("tinyArc", "tinyGSM8k", "tinyMMLU", "tinyWinogrande", "tinyHellaswag", "tinyTruthfulQA")
SIMILAR = 0.102  # the classifier's probability above which two answers are the same
REWARD = "Skywork/Skywork-Reward-Gemma-2-27B-v0.2"
REWARD_CUTS = (-7.71875, -6.28125, -6.0, -5.71875, -5.5, -5.0, -4.375, -3.4375, -2.046875)
FIELDS = ("question", "A", "B", "C", "D", "correct answer", "explanation")
LABEL = re.compile(r"(question|correct answer|explanation)\s*:\s*(.*)", re.IGNORECASE)
OPTION = re.compile(r"([A-D])[.)]\s+(.*)")
LIKE_AN_OPTION = re.compile(r"[-*•(]*\s*([A-Ha-h])[.):]+(\s|$)")
LETTER = re.compile(r"\(?([A-D])\b(.*)", re.DOTALL)
AROUND = (  # opening and closing marks that are stripped from an open answer
    ("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"), ("`", "`"), ('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"),
    ("«", "»"), ("»", "«"), ("‹", "›"), ("„", "“"), ("„", "”"), ("‚", "‘"), ("「", "」"),
)  # fmt: skip


def total_variation(places: np.ndarray, axis: int = -1) -> np.ndarray:
    """Total variation from uniform of places 0..3 (..., N), along an axis: 1/2 sum over places |share - 1/4|."""
    return sum(np.abs((places == place).mean(axis) - 0.25) for place in range(4)) / 2


def total_variation_of_uniform(places: np.ndarray, axis: int = -1) -> float:
    """What total_variation is expected to be if N places are uniform: 1/2 * 4 E|Binomial(N, 1/4) / N - 1/4|."""
    n = places.shape[axis]
    counts = np.arange(n + 1)
    return float(2 * stats.binom.pmf(counts, n, 0.25) @ np.abs(counts / n - 0.25))


def uniform_p_value(places: np.ndarray, axis: int = -1) -> float:
    return float(stats.chisquare(np.bincount(places, minlength=4)).pvalue)


SPENT = {"answer_rate": ("answered", np.mean), "tokens": ("tokens", np.mean)}
METRICS = {  # axis -> metric -> heading, statistic over families, prompts or generations
    "numbers": {
        "normalized_w1": ("norm. W1", np.median),
        "logit_kl": ("logit KL", np.median),
        "logit_kl_floor": ("its floor", np.median),
        "excess_kl": ("excess KL", np.median),
        "valid_rate": ("valid", np.mean),
        "gof_pass_rate": ("GOF pass", np.mean),
        **SPENT,
    },
    "open": {
        "valid_rate": ("valid", np.mean),
        "support_90": ("support 90 %", np.median),
        "unique_rate": ("unique", np.mean),
        "top_share": ("top answer", np.mean),
        "number_rate": ("numbers", np.mean),
        **SPENT,
    },
    "mcq": {
        "valid_rate": ("valid", np.mean),
        "tv": ("TV", total_variation),
        "tv_uniform": ("TV of uniform", total_variation_of_uniform),
        "p_value": ("p", uniform_p_value),
        **{f"share_{letter}": (letter.upper(), np.mean) for letter in "abcd"},
        "tokens": ("tokens", np.mean),
    },
    "novelty": {"distinct": ("distinct", np.mean), "utility": ("utility", np.mean)},
}
TITLES = {
    "numbers": "Numbers: unseen parameters and unseen families",
    "open": "Open-ended answers",
    "mcq": "The right answer's place in generated questions",
    "novelty": "NoveltyBench: distinct answers and their utility",
    "retention": "Retention: what the training cost",
}
NO_INTERVAL = ("tv_uniform", "p_value")

# ----------------------------------------------------------------------------------------- what counts as an answer


def without_thoughts(text: str) -> str | None:
    """What follows a thinking block or an analysis channel; all of a text that has none; None if it is not closed."""
    text = re.split(r"</think>|<\|channel\|>final<\|message\|>", text)[-1]
    return None if "<think>" in text or "<|channel|>" in text else text


def tagged_answer(text: str) -> str | None:
    """What an SSOT text has between <answer> and </answer>, after its thoughts and its random string; else None.

    Tags that are missing, not closed or nested are no answer, nor are several that differ, nor is anything inside
    <thinking> or <random_string>, closed or not.
    """
    text = without_thoughts(text) or ""
    for tag in ("random_string", "thinking"):
        text = text.rpartition(f"</{tag}>")[2]
    if "<random_string>" in text or "<thinking>" in text:
        return None
    found = re.findall(r"<answer>((?:(?!</?answer>).)*)</answer>", text, re.DOTALL)
    whole = len(found) == text.count("<answer>") == text.count("</answer>")
    contents = {content.strip() for content in found}
    return contents.pop() or None if whole and len(contents) == 1 else None


def parse_answer(text: str) -> str | None:
    """An open answer, normalized, else None.

    It is the first line that is neither blank nor a code fence, after any thoughts, with white space folded, Unicode
    composed (NFC), zero-width marks dropped, and pairs of quotes, emphasis or code marks around it stripped (AROUND).
    Upper and lower case stay. No answer: no letter, digit or pictograph there, or a line that was cut off at the
    token limit ("…" follows it).
    """
    text = re.sub(r"[\u200b-\u200f\u2060\ufeff]", "", unicodedata.normalize("NFC", without_thoughts(text) or ""))
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not re.fullmatch(r"```\w*", line)]
    if not lines or (len(lines) == 1 and lines[0].endswith("…")):
        return None
    answer, bare = " ".join(lines[0].split()), None
    while answer != bare:
        bare = answer
        for opening, closing in AROUND:
            inside = answer[len(opening) : -len(closing)]
            marks = re.sub(r"\w'(?=\w)", "", inside)  # an apostrophe is not a quote
            wrapped = answer.startswith(opening) and answer.endswith(closing) and len(answer) > len(opening)
            if wrapped and opening not in marks and closing not in marks:
                answer = inside.strip()
    kinds = {unicodedata.category(c) for c in answer if c != "\ufffd"}
    return answer if any(kind[0] in "LN" or kind == "So" for kind in kinds) else None


def parse_question(text: str) -> int | None:
    """The place (0 to 3) of the right answer in a generated multiple-choice question, else None.

    The form, each field once, in this order, each at the start of a line, with nothing before the first:
        Question: ...      A. ...  B. ...  C. ...  D. ...      Correct Answer: C      Explanation: ...
    Accepted: blank lines and spaces around lines, bold markers and heading marks, thoughts before it, upper or lower
    case of the three labels, "A)" for "A.", a question, options and explanation of several lines, a letter in
    parentheses or followed by its option ("B. Pancreas", which must then be option B), a cut explanation.
    Not accepted: a missing, empty, repeated or misplaced field, a fifth option, another letter than A to D, two
    letters, words before the question, an option that two or more lines might begin.
    """
    text = unicodedata.normalize("NFC", without_thoughts(text) or "").replace("**", "").replace("__", "")
    fields = []  # the text of each of FIELDS, as far as they have come
    for line in text.splitlines():
        line = re.sub(r"^#+\s+", "", line.strip())
        label, option = LABEL.fullmatch(line), OPTION.fullmatch(line)
        expected = FIELDS[len(fields)] if len(fields) < len(FIELDS) else None
        if label or (option and option[1] == expected):
            if label and label[1].lower() != expected:
                return None
            fields.append((label or option)[2])
        elif not line:
            continue
        elif not fields:
            return None
        elif len(fields) <= 5 and (like := LIKE_AN_OPTION.match(line)) and (len(fields) > 1 or like[1] in "ABCD"):
            return None  # among the options, or out of order before them
        else:
            fields[-1] += " " + line
    if len(fields) != len(FIELDS) or not all(any(c.isalnum() for c in field) for field in fields):
        return None
    plain = lambda words: re.sub(r"^\W+|\W+$", "", " ".join(words.split()).casefold())
    answer = LETTER.fullmatch(fields[5].strip())
    if not answer or plain(answer[2]) not in ("", plain(fields["ABCD".index(answer[1]) + 1])):
        return None
    return "ABCD".index(answer[1])


# --------------------------------------------------------------------------------------- scores of one prompt


def parse_number(text: str, family: str, params: dict) -> float | None:
    """The value of a valid answer, else None (see valid_rate above)."""
    text = text.strip()
    if not NUMBER.fullmatch(text):
        return None
    value, (spec, args) = float(text), scipy_args(family, params)
    low, high = spec.dist.support(*args)
    if not np.isfinite(value) or not low <= value <= high or (spec.discrete and value != round(value)):
        return None
    return value


def normalized_w1(values: np.ndarray, counts: np.ndarray, support: np.ndarray, probs: np.ndarray) -> float:
    """W1(values with counts, support with probs) / E|X - median| of the latter. All (N,) or (M,)."""
    median = support[np.searchsorted(np.cumsum(probs), 0.5)]
    return stats.wasserstein_distance(values, support, counts, probs) / float(probs @ np.abs(support - median))


def fits(values: np.ndarray, counts: np.ndarray, family: str, params: dict) -> bool:
    """Whether a goodness-of-fit test at 1 % lets these answers pass."""
    spec, args = scipy_args(family, params)
    if not spec.discrete:
        sample = np.repeat(values, counts)
        return bool(stats.kstest(sample, lambda x: spec.dist.cdf(x, *args)).pvalue >= SIGNIFICANCE)
    texts, probs = canonical_outputs(family, params)
    observed = np.zeros(len(probs))
    np.add.at(observed, np.clip(values - int(texts[0]), 0, len(probs) - 1).astype(int), counts)
    observed, expected = pool(observed, probs * counts.sum())
    return len(expected) < 2 or bool(stats.chisquare(observed, expected).pvalue >= SIGNIFICANCE)


def pool(observed: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join neighbouring cells, from the left, until each expects LEAST_EXPECTED; a poor last one joins too."""
    starts, mass = [0], 0.0
    for i, cell in enumerate(expected):
        if mass >= LEAST_EXPECTED:
            starts.append(i)
            mass = 0.0
        mass += cell
    if mass < LEAST_EXPECTED and len(starts) > 1:
        starts.pop()
    return np.add.reduceat(observed, starts), np.add.reduceat(expected, starts)


def tagged_answers(draws: dict[str, int]) -> dict[str, int]:
    """{answer: count} of an SSOT row's raw texts, with "" for texts that have no tagged answer."""
    found = Counter()
    for text, count in draws.items():
        found[tagged_answer(text) or ""] += count
    return found


def score_numbers(row: dict) -> dict[str, float | None]:
    """The scores of a number prompt's row; None where there is none."""
    family, params = row["family"], row["params"]
    parsed = [(parse_number(text, family, params), count) for text, count in row["draws"].items()]
    pairs = [(value, count) for value, count in parsed if value is not None]
    scores = {"valid_rate": sum(count for _, count in pairs) / row["n"]}
    scores |= {"normalized_w1": None, "gof_pass_rate": 0.0}
    if pairs:
        values, counts = (np.array(column) for column in zip(*pairs, strict=True))
        texts, probs = canonical_outputs(family, params)
        scores["normalized_w1"] = normalized_w1(values, counts, np.array(texts, float), probs)
        scores["gof_pass_rate"] = float(fits(values, counts, family, params))
    kl, floor = row.get("logit_kl"), row.get("logit_kl_floor")
    scores |= {"logit_kl": kl, "logit_kl_floor": floor}
    return scores | {"excess_kl": None if kl is None or floor is None else kl - floor}


def score_open(row: dict) -> dict[str, float | None]:
    """The scores of an open prompt's row; None where there is none."""
    counts = Counter()
    for text, count in row["draws"].items():
        counts[parse_answer(text)] += count
    valid = row["n"] - counts.pop(None, 0)
    scores = {"valid_rate": valid / row["n"], "support_90": row["support_90"], "unique_rate": len(counts) / row["n"]}
    bare = sum(count for answer, count in counts.items() if NUMBER.fullmatch(answer))
    return scores | {
        "top_share": max(counts.values()) / valid if valid else None,
        "number_rate": bare / valid if valid else None,
    }


def score_mcq(row: dict) -> dict[str, float | None]:
    """The scores of one generated question: shares and the place are None for one that is not in form."""
    place = parse_question(row["text"])
    shares = {f"share_{letter}": None if place is None else float(place == i) for i, letter in enumerate("abcd")}
    return {"valid_rate": float(place is not None), "tv": place, "tv_uniform": place, "p_value": place} | shares


def score_novelty(row: dict) -> dict[str, float]:
    """The scores of a prompt's generations: how many classes they fall into, and their utility."""
    return {"distinct": float(len(set(row["partition"]))), "utility": novelty_utility(row["generation_scores"])}


def score(axis: str, row: dict) -> dict[str, float | None]:
    if axis == "novelty":
        return score_novelty(row)
    answer_rate = None
    if row.get("ssot"):
        row = row | {"draws": tagged_answers(row["draws"])}
        answer_rate = 1 - row["draws"].get("", 0) / row["n"]
    scores = {"numbers": score_numbers, "open": score_open, "mcq": score_mcq}[axis](row)
    tokens = row["tokens"] / row.get("n", 1) if row.get("tokens") else None
    return scores | {"tokens": tokens, "answer_rate": answer_rate}


def target_row(row: dict) -> dict:
    """A row as a perfect sampler would have made it: n draws from the true distribution, and the floor as its KL."""
    texts, _ = sample_outputs(row["family"], row["params"], row["n"], prompt_rng(0, row["id"]), max_bins=0)
    perfect = {"method": "target", "draws": Counter(texts), "logit_kl": row.get("logit_kl_floor")}
    return row | perfect | {"tokens": None, "ssot": False}


# ----------------------------------------------------------------------------------------------- NoveltyBench


def same_words(a: str, b: str) -> bool | None:
    """Whether two answers of at most five words are the same: common words are half of the longer one's, or more.

    None where one has more than five words, which is for the classifier to say. Case does not count.
    """
    a, b = a.lower().split(), b.lower().split()
    longer = max(len(a), len(b))
    return 2 * len(set(a) & set(b)) >= longer if longer <= 5 else None


def greedy_classes(same: np.ndarray) -> list[int]:
    """The class of each of N answers: that of the first class whose first member is the same, else a new one.

    same (N, N) bool; what is read of it is [i, j], i < j.
    """
    firsts, classes = [], []
    for j in range(len(same)):
        alike = [k for k, i in enumerate(firsts) if same[i, j]]
        classes.append(alike[0] if alike else len(firsts))
        if not alike:
            firsts.append(j)
    return classes


def reward_points(reward: float) -> int:
    """1 to 10 points for a raw reward; one that equals a cut gets the points below it."""
    return int(np.searchsorted(REWARD_CUTS, reward)) + 1


def novelty_utility(generation_scores: list[float], patience: float = 0.8) -> float:
    """Sum of patience^i s_i / sum of patience^i: the expected worth to a reader who goes on to the next answer with
    probability `patience`. s_i: points of answer i, 0 if it repeats an earlier one (NoveltyBench, arXiv 2504.05228)."""
    return float(np.average(generation_scores, weights=patience ** np.arange(len(generation_scores))))


def load_judge(name: str, tokenizer: str, labels: int):
    """A sequence classifier, in bfloat16 over all GPUs or in float32 on a CPU, and its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import trie

    gpu = torch.cuda.is_available()
    options = {"dtype": torch.bfloat16, "device_map": "auto"} if gpu else {"dtype": torch.float32}
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        model, info = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise InputError(f"cannot load the judge {name!r}: {trie.one_line(error)}") from None
    # subtle: transformers only warns where a checkpoint has no classifier, and makes up random weights.
    if info["missing_keys"] or model.config.num_labels != labels:
        raise InputError(f"{name!r} is no trained classifier with {labels} label(s); missing {info['missing_keys']}")
    # subtle: such models read their score at the last token that is not padding.
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise InputError(f"the tokenizer of {name!r} has no padding token of its own")
    tokenizer.padding_side, model.config.pad_token_id = "right", tokenizer.pad_token_id
    return model.eval(), tokenizer


def load_classifier(name: str):
    """judge(row) -> partition (the class of each generation) and distinct (how many classes there are)."""
    import torch

    model, tokenizer = load_judge(name, CLASSIFIER_TOKENIZER if name == CLASSIFIER else name, labels=2)

    start, between = tokenizer.cls_token_id, tokenizer.sep_token_id
    if start is None or between is None:
        raise InputError(f"{name!r} does not compare two texts: its tokenizer has no [CLS] and [SEP]")

    def encode(a: str, b: str) -> dict:
        a, b = tokenizer([a, b], add_special_tokens=False, truncation=True, max_length=128)["input_ids"]
        pair = {"input_ids": [start, *a, between, *b, between]}
        pair["token_type_ids"] = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        return {key: value for key, value in pair.items() if key in tokenizer.model_input_names}

    @torch.inference_mode()
    def judge(row: dict) -> dict:
        texts = row["generations"]
        same = {pair: same_words(*pair) for pair in itertools.combinations(texts, 2)}
        if unsure := [pair for pair, known in same.items() if known is None]:
            batch = tokenizer.pad([encode(*pair) for pair in unsure], return_tensors="pt").to(model.device)
            similar = model(**batch).logits.float().softmax(-1)[:, 1] > SIMILAR
            same |= dict(zip(unsure, similar.tolist(), strict=True))
        classes = greedy_classes(np.array([[same.get((a, b), False) for b in texts] for a in texts]))
        return {"partition": classes, "distinct": len(set(classes))}

    return judge


def load_reward(name: str):
    """judge(row) -> generation_scores (points; 0 for a repeat), partition_scores (of each class) and utility."""
    import torch

    import trie

    model, tokenizer = load_judge(name, name, labels=1)

    @torch.inference_mode()
    def judge(row: dict) -> dict:
        firsts = [i for i, k in enumerate(row["partition"]) if k not in row["partition"][:i]]
        ask = {"role": "user", "content": row["prompt"]}
        talks = [[ask, {"role": "assistant", "content": row["generations"][i]}] for i in firsts]
        ids = [trie.encode_one(tokenizer, trie.render(tokenizer, talk)) for talk in talks]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
        rewards = model(**batch).logits[:, 0]
        if not rewards.isfinite().all():
            raise InputError(f"{name!r} gives rewards that are not finite, to the answers to {row['id']!r}")
        points = dict(zip(firsts, map(reward_points, rewards.tolist()), strict=True))
        scores = [points.get(i, 0) for i in range(len(row["partition"]))]
        found = {"generation_scores": scores, "partition_scores": list(points.values())}
        return found | {"utility": novelty_utility(scores)}

    return judge


def judge_all(folders: list[Path], source: str, target: str, name: str, load: Callable) -> None:
    """Write `target` into each folder: the rows of `source`, each with what the judge adds."""
    import trie

    keys = ("id", "prompt", "model", "generations", *(("partition",) if source == "partitions.jsonl" else ()))
    asked = {folder: read_rows([folder / source], keys, check_generations) for folder in folders}
    judge = load(name)
    answer = lambda todo: (row | judge(row) for row in todo)
    for folder, rows in asked.items():
        inputs = trie.digests([folder / source])
        trie.write_rows(folder / target, argparse.Namespace(judge=name), inputs, rows, answer, str(folder / target))
    judge = None  # the next one is large
    gc.collect()
    trie.torch.cuda.empty_cache()


def check_folder(folder: Path, judges: dict[str, str]) -> None:
    """Raises InputError for files of a folder that are about different generations, or made by other judges than the
    {file: judge} asked for."""
    seen, prompts = {}, None
    for name in ("generations.jsonl", *judges):
        file, record = folder / name, folder / f"{name}.run.json"
        if not file.exists():
            continue
        rows = read_rows([file], ("id", "prompt", "generations"), check_generations)
        ids = {row["id"] for row in rows}
        same = [
            seen.setdefault((row["id"], key), row[key]) == row[key]
            for row in rows
            for key in ("generations", "partition")
            if key in row
        ]
        if ids != (prompts := prompts or ids) or not all(same):
            raise InputError(f"{file} is not about what the files before it have; remove it to judge these")
        made = json.loads(record.read_text())["args"].get("judge") if name in judges and record.exists() else None
        if made not in (None, judges.get(name)):
            raise InputError(f"{file} was made with {made!r}; remove it to judge by {judges[name]!r}")


def check_generations(row: dict) -> str:
    """A row's name. Raises InputError for one that is not in NoveltyBench's form, as far as it goes."""
    check_texts(row, "id", "prompt")
    texts = row["generations"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError("generations must be a list of texts")
    for key in ("partition", "generation_scores"):
        numbers = row.get(key, [0] * len(texts))
        if not isinstance(numbers, list) or [type(x) in (int, float) for x in numbers] != [True] * len(texts):
            raise InputError(f"{key} must have one number for each of the {len(texts)} generations")
    return f"id {row['id']!r}"


def novelty() -> None:
    parser = Parser(prog="metrics.py novelty", description="Judge answers to NoveltyBench's prompts.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="has generations.jsonl; gets the files that it lacks")
    parser.add_argument("--classifier", default=CLASSIFIER, help="says which answers are the same (%(default)s)")
    parser.add_argument("--reward", default=REWARD, help="says how good they are (%(default)s)")
    args = parser.parse_args(sys.argv[2:])
    folders = [Path(folder) for folder in args.folders]
    for folder in folders:
        check_folder(folder, {"partitions.jsonl": args.classifier, "scores.jsonl": args.reward})
    unscored = [folder for folder in folders if not (folder / "scores.jsonl").exists()]
    if whole := [folder for folder in unscored if not (folder / "partitions.jsonl").exists()]:
        judge_all(whole, "generations.jsonl", "partitions.jsonl", args.classifier, load_classifier)
    if unscored:
        judge_all(unscored, "partitions.jsonl", "scores.jsonl", args.reward, load_reward)
    rows = read_rows([folder / "scores.jsonl" for folder in folders], ("id", "model"), check_row)
    for folder in folders:
        scores = [score_novelty(row) for row in read_jsonl(folder / "scores.jsonl")]
        means = {f"mean_{key}": float(np.mean([row[key] for row in scores])) for key in METRICS["novelty"]}
        write_text(folder / "summary.json", json.dumps(means) + "\n")
    print("\n".join(tables(aggregate(rows))).rstrip())


# -------------------------------------------------------------------------------------------------- retention


def read_results(path: str) -> list[dict]:
    """Score rows of a result file of lm-evaluation-harness: one per task, metric and filter. Raises InputError."""
    rows = []
    number = lambda x: x if type(x) in (int, float) and math.isfinite(x) else None
    try:
        found = json.loads(Path(path).read_text())
        arguments = found["config"]["model_args"]
        if isinstance(arguments, str):  # as the harness's own command records them
            arguments = {k.strip(): v.strip() for k, _, v in (pair.partition("=") for pair in arguments.split(","))}
        adapter = arguments.get("peft") or arguments.get("lora_local_path") or "base"
        source = {"model": arguments["pretrained"], "method": Path(adapter).name}
        check_texts(source, "model", "method")
        for task, counts in found["n-samples"].items():
            scores, metrics = found["results"][task], found.get("configs", {}).get(task, {}).get("metric_list", ())
            ways = {metric["metric"]: str(metric.get("aggregation")) for metric in metrics}
            for key, value in scores.items():
                metric, _, chosen = key.partition(",")
                if not chosen or metric.endswith("_stderr") or metric == "byte_perplexity":  # 2 ** bits_per_byte
                    continue
                way = ways.get(metric, "")
                name = "gp-IRT" if "gpirt" in way else f"plain {metric}" if "tinyBenchmarks" in way else metric
                row = source | {"axis": "retention", "split": task}
                row |= {"metric": name if chosen == "none" else f"{name}, {chosen}", "value": number(value)}
                row |= {"low": None, "high": None, "n": counts["effective"]}
                rows.append(row | {"stderr": number(scores.get(f"{metric}_stderr,{chosen}"))})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a result file of lm-evaluation-harness ({reason})") from None
    return rows


def retention_scores(paths: list[str]) -> list[dict]:
    """All score rows of result files, the mean over tinyBenchmarks' six tasks where all are there, and of each row its
    difference to the base model. Raises InputError for a score that two files have."""
    found = {}
    for path in paths:
        for row in read_results(path):
            key = (row["model"], row["method"], row["split"], row["metric"])
            if key in found:
                raise InputError(f"{path}: {row['split']} of {row['method']} ({row['model']}) is in another file too")
            found[key] = row
    for source in dict.fromkeys(key[:2] for key in found):
        tiny = [row for key, row in found.items() if key[:2] == source and row["split"] in TINY]
        tiny = [row for row in tiny if "flexible" not in row["metric"]]
        kinds = {row["metric"].replace(",", " ").split()[0] for row in tiny}
        if len(tiny) == len(TINY) and len(kinds) == 1 and all(row["value"] is not None for row in tiny):
            mean = {"split": "mean of the six", "metric": kinds.pop(), "stderr": None}
            mean |= {"value": float(np.mean([row["value"] for row in tiny])), "n": sum(row["n"] for row in tiny)}
            found[*source, mean["split"], mean["metric"]] = tiny[0] | mean
    for (model, _, *score_of), row in found.items():
        values = row["value"], found.get((model, "base", *score_of), {}).get("value")
        row["difference"] = None if None in values else values[0] - values[1]
    return list(found.values())


# ------------------------------------------------------------------------------------------------ aggregation


def bootstrap(values: np.ndarray, statistic, resamples: int = 10_000) -> tuple[float | None, float | None]:
    """95 % percentile interval (Efron 1981) of a statistic of values (F,), resampled; (None, None) if F < 2."""
    if len(values) < 2:
        return None, None
    picks = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(statistic(values[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def add_targets(rows: list[dict]) -> list[dict]:
    """The rows and, for the numbers among them, their target rows: one set for each n that was drawn."""
    numbers = [row for row in rows if axis_of(row) == "numbers"]
    most, targets = max((row["n"] for row in numbers), default=0), {}
    for row in sorted(numbers, key=lambda row: row.get("logit_kl_floor") is None):
        name = "target" if row["n"] == most else f"target, n={row['n']}"
        targets.setdefault((row["model"], name, row["id"]), row)
    return rows + [target_row(row) | {"method": name} for (_, name, _), row in targets.items()]


def aggregate(rows: list[dict]) -> list[dict]:
    """Score rows of every (axis, model, method, split) and metric, target rows included, in order of appearance."""
    groups, out = {}, []
    for row in add_targets(rows):
        groups.setdefault((axis_of(row), row["model"], row["method"], row.get("split")), []).append(row)
    for (axis, model, method, split), members in groups.items():
        # A unit is what the bootstrap resamples: a family (the mean over its prompts), a prompt or a generation.
        scored = [(row["family"] if axis == "numbers" else row["id"], score(axis, row)) for row in members]
        for metric, (_, statistic) in METRICS[axis].items():
            units = {}
            for unit, scores in scored:
                if scores[metric] is not None:
                    units.setdefault(unit, []).append(scores[metric])
            values = np.array([v[0] if len(v) == 1 else np.mean(v) for v in units.values()])
            value = float(statistic(values)) if len(values) else None
            low, high = (None, None) if metric in NO_INTERVAL else bootstrap(values, statistic)
            result = {"model": model, "method": method, "axis": axis, "split": split, "metric": metric}
            out.append(result | {"value": value, "low": low, "high": high, "n": sum(map(len, units.values()))})
    return out


# ----------------------------------------------------------------------------------------------------- tables


def cell(row: dict | None) -> str:
    if row is None or row["value"] is None:
        return "–"
    if row["metric"] == "p_value" and row["value"] < 0.001:
        return "< 0.001"
    short = lambda x, digits: f"{x:.{digits}f}" if abs(x) < 1000 else f"{x:.0e}"  # one wild draw can make a W1 huge
    interval = "" if row["low"] is None else f" [{short(row['low'], 2)}, {short(row['high'], 2)}]"
    return short(row["value"], 3) + interval


def table(scores: list[dict], axis: str) -> list[str]:
    """A Markdown table of an axis: methods (base first, targets last) x metrics, one block per split. A column that
    is empty for all is left out."""
    cells = {(r["model"], r["split"], r["method"], r["metric"]): r for r in scores if r["axis"] == axis}
    rank = lambda method: -1 if method == "base" else method.startswith("target")
    keys = sorted(
        dict.fromkeys(key[:3] for key in cells), key=lambda k: (k[0], k[1] != "unseen", k[1] or "", rank(k[2]))
    )
    lines = [["model", "split", "method", *(heading for heading, _ in METRICS[axis].values())]]
    for model, split, method in keys:
        line = [cell(cells.get((model, split, method, metric))) for metric in METRICS[axis]]
        lines.append([model, split or "–", method, *line])
    return markdown(column for column in zip(*lines, strict=True) if set(column[1:]) != {"–"})


def markdown(columns: Iterable[tuple[str, ...]]) -> list[str]:
    """The lines of a Markdown table of columns, each with its heading first."""
    columns = [[text.ljust(max(map(len, column))) for text in column] for column in columns]
    columns = [[column[0], "-" * len(column[0]), *column[1:]] for column in columns]
    return ["| " + " | ".join(line) + " |" for line in zip(*columns, strict=True)]


def retention_table(scores: list[dict]) -> list[str]:
    """A Markdown table: tasks x methods, each value with the harness's standard error where it gives one, and the
    differences to the base model."""
    rows = [row for row in scores if row["axis"] == "retention"]
    methods = sorted(dict.fromkeys(row["method"] for row in rows), key=lambda method: method != "base")
    others = [method for method in methods if method != "base"]
    lines = [["model", "task", "score", "n", *methods, *(f"{method} - base" for method in others)]]
    cells = {(row["model"], row["split"], row["metric"], row["method"]): row for row in rows}
    number = lambda x, sign="": "–" if x is None else f"{x:{sign}.3f}" if abs(x) < 1000 else f"{x:{sign}.2e}"
    for key in dict.fromkeys(key[:3] for key in cells):
        line = [cells.get((*key, method)) for method in methods]
        values = [number(row and row["value"]) for row in line]
        errors = ["" if row is None or row["stderr"] is None else f" ± {row['stderr']:.3f}" for row in line]
        differences = [number(row and row["difference"], "+") for row in line[len(methods) - len(others) :]]
        n = max(row["n"] for row in line if row)
        lines.append([*key, str(n), *map("".join, zip(values, errors, strict=True)), *differences])
    return markdown(zip(*lines, strict=True))


def tables(scores: list[dict]) -> list[str]:
    """All tables, one per axis, with their headings."""
    lines = []
    for axis, title in TITLES.items():
        if any(row["axis"] == axis for row in scores):
            rows = retention_table(scores) if axis == "retention" else table(scores, axis)
            lines += [f"**{title}**", "", *rows, ""]
    if any(row["axis"] == "retention" for row in scores):
        lines += [
            "± one standard error of the harness, where it gives one. Bits per byte and word perplexity are of",
            "whole texts read in windows; the paper's PALOMA figures are token perplexities at stride 1024.",
            "",
        ]
    return lines


def report(scores: list[dict], rows: list[dict], runs: list[Path]) -> list[str]:
    """The tables, what they cost, and with which options and on which hardware they were made."""
    lines = [*tables(scores), "Value and 95 % bootstrap interval; `target` = the same scores of true draws.", ""]
    axes = [axis for axis in METRICS if any(row["axis"] == axis for row in scores)]
    cost = {}
    for row in rows:
        spent = cost.setdefault(row["method"], dict.fromkeys(axes))
        if "seconds" in row:
            spent[axis_of(row)] = (spent[axis_of(row)] or 0.0) + row["seconds"]
    headings = [
        "method",
        "training steps",
        "training minutes",
        *(f"{axis} minutes" for axis in axes),
        "training options",
    ]
    lines += ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    hardware = None
    trained = {folder.name: folder for folder in runs}
    for method, spent in cost.items():
        steps = minutes = options = "–"
        if method in trained:
            record = json.loads((trained[method] / "run.json").read_text())
            log = read_jsonl(trained[method] / "log.jsonl")
            steps, minutes = len(log), f"{sum(entry['seconds'] for entry in log) / 60:.1f}"
            hidden = ("model", "data", "out", "limit", "accumulate")
            used = {k: v for k, v in record["args"].items() if k not in hidden and v is not None and v is not False}
            options = ", ".join(f"{key} {value:g}" for key, value in used.items())
            hardware = f"{record['device']}, {record['cores']} cores, {record['threads']} thread(s) per stage"
            hardware += f", torch {record['versions']['torch']}"
        sampling = ["–" if seconds is None else f"{seconds / 60:.1f}" for seconds in spent.values()]
        lines.append("| " + " | ".join(map(str, [method, steps, minutes, *sampling, options])) + " |")
    return lines + (["", f"Hardware: {hardware}."] if hardware else [])


def insert(path: Path, lines: list[str]) -> None:
    """Write lines to a file; into one that has the marker lines, between these."""
    opening, closing = "<!-- results -->", "<!-- /results -->"
    text = path.read_text() if path.exists() else ""
    body = "\n".join(lines) + "\n"
    if opening in text and closing in text:
        body = text.split(opening)[0] + f"{opening}\n{body}{closing}" + text.split(closing)[1]
    write_text(path, body)


# --------------------------------------------------------------------------------------------------- pictures

# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes do the same in black-and-white print.
INKS = (("#E69F00", "-"), ("#0072B2", "--"), ("#D55E00", "-."), ("#009E73", ":"), ("#CC79A7", "-"), ("#56B4E9", "--"))


def draw_cdfs(axes, rows: list[dict], inks: dict) -> None:
    """A panel for each prompt: the target's CDF, and those of the methods' valid draws."""
    prompts = list(dict.fromkeys((row["split"], row["id"]) for row in rows if row["method"] == "base"))
    unseen, ood = ([key for split, key in prompts if (split == "ood") == held_out] for held_out in (False, True))
    for panel, key in zip(axes.flat, unseen[:: max(1, len(unseen) // 8)][:8] + ood[1::3][:6], strict=False):
        for row in (row for row in rows if row["id"] == key):
            family, params = row["family"], row["params"]
            texts, probs = canonical_outputs(family, params)
            if row["method"] == "base":
                values = np.array(texts, float)
                panel.step(
                    values, np.cumsum(probs), color="black", linewidth=3, alpha=0.35, where="post", label="target"
                )
                low, high = values[np.searchsorted(np.cumsum(probs), [0.01, 0.99]).clip(max=len(values) - 1)]
                panel.set_xlim(low - 0.1 * (high - low) - 0.1, high + 0.1 * (high - low) + 0.1)
                panel.set_title(f"{family} ({', '.join(f'{v:g}' for v in params.values())})", fontsize=9)
            pairs = [(parse_number(text, family, params), count) for text, count in row["draws"].items()]
            drawn = np.sort(np.repeat(*map(list, zip(*[pair for pair in pairs if pair[0] is not None], strict=True))))
            color, dashes = inks[row["method"]]
            shares = np.arange(1, len(drawn) + 1) / len(drawn)
            panel.step(drawn, shares, color=color, linestyle=dashes, where="post", label=row["method"])
    for panel in axes.flat:
        panel.set_visible(panel.has_data())


def draw_first_tokens(axes, rows: list[dict], inks: dict) -> None:
    """The ten most probable first tokens of one prompt, a panel for each method: the prompt whose most probable token
    loses a median share from base to the others."""
    tops = {}
    for row in rows:
        tops.setdefault(row["prompt"], {})[row["method"]] = row["top"][0][1]
    loss = lambda prompt: tops[prompt].get("base", 0.0) - np.mean([p for m, p in tops[prompt].items() if m != "base"])
    prompt = sorted(tops, key=loss)[len(tops) // 2]
    axes[0].figure.suptitle(prompt, fontsize=10)
    for panel, row in zip(axes, [row for row in rows if row["prompt"] == prompt], strict=False):
        texts, probs = zip(*row["top"][:10], strict=True)
        panel.bar(range(len(texts)), probs, color=inks[row["method"]][0])
        panel.set_xticks(range(len(texts)), [repr(text)[1:-1] for text in texts])
        panel.set(title=row["method"], ylim=(0, 1))
    axes[0].set_ylabel("probability of the first token")


def draw_families(panel, rows: list[dict], inks: dict) -> None:
    """Normalized W1 of each family, one mark a method."""
    families = list(dict.fromkeys(row["family"] for row in rows))[::-1]
    for method, (color, _) in inks.items():
        for place, family in enumerate(families):
            scores = [score_numbers(r)["normalized_w1"] for r in rows if (r["method"], r["family"]) == (method, family)]
            mean = min(np.mean([value for value in scores if value is not None] or [np.nan]), 10.0)
            panel.plot(
                mean, place, "o^sDvP"[list(inks).index(method) % 6], color=color, label=method if not place else None
            )
    panel.set(
        yticks=range(len(families)), xscale="log", xlabel="normalized W1 (1: always the median; 10 or more: at 10)"
    )
    panel.set_yticklabels(families, fontsize=8)
    panel.axvline(1, color="gray", linewidth=0.5)


def draw_losses(panel, logs: dict[str, list[dict]], inks: dict) -> None:
    """Training loss of each method beside the loss of a perfect sampler on the same batches."""
    for method, log in logs.items():
        steps = [entry["step"] for entry in log]
        panel.plot(steps, [entry["loss"] for entry in log], color=inks[method][0], label=method)
        panel.plot(
            steps, [entry["floor"] for entry in log], color=inks[method][0], linestyle=":", label=f"{method}, perfect"
        )
    panel.set(xlabel="step", ylabel="loss, nats per token")


def figures() -> None:
    parser = Parser(prog="metrics.py figures", description="Draw four pictures from rows and training logs.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="rows of sample.py: numbers and open")
    parser.add_argument("--runs", nargs="*", default=[], metavar="DIR", help="adapter folders, for their log.jsonl")
    parser.add_argument(
        "--out", required=True, help="folder for cdf.png, first_tokens.png, families.png and losses.png"
    )
    args = parser.parse_args(sys.argv[2:])
    try:
        import matplotlib
    except ImportError:
        raise InputError("matplotlib is missing: pip install -r requirements-figures.txt") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [row for row in read_rows(args.files, ("id", "model"), check_row) if not row.get("ssot")]
    numbers, answers = ([row for row in rows if axis_of(row) == axis] for axis in ("numbers", "open"))
    logs = {Path(run).name: read_jsonl(Path(run) / "log.jsonl") for run in args.runs}
    methods = sorted(dict.fromkeys([row["method"] for row in rows] + list(logs)), key=lambda method: method != "base")
    inks = {method: INKS[i % len(INKS)] for i, method in enumerate(methods)}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    plots = (
        ("cdf", draw_cdfs, numbers, {"nrows": 3, "ncols": 5, "figsize": (12, 7)}),
        ("first_tokens", draw_first_tokens, answers, {"ncols": max(2, len(methods)), "figsize": (12, 3)}),
        ("families", draw_families, numbers, {"figsize": (6, 7)}),
        ("losses", draw_losses, logs, {"figsize": (6, 3.5)}),
    )
    for name, draw, data, layout in plots:
        if not data:
            continue
        figure, axes = plt.subplots(layout="constrained", **layout)
        draw(axes, data, inks)
        first = np.atleast_1d(axes).flat[0]
        if name != "first_tokens":
            first.legend(fontsize=7)
        figure.savefig(out / f"{name}.png.tmp", dpi=110, facecolor="white", format="png")  # white: dark pages too
        (out / f"{name}.png.tmp").replace(out / f"{name}.png")
        plt.close(figure)


KEYS = {  # what rows of an axis must have
    "numbers": ("method", "family", "params", "split", "n", "draws"),
    "open": ("method", "support_90", "n", "draws"),
    "mcq": ("method", "text"),
    "novelty": ("prompt", "generations", "partition", "generation_scores"),
}


def axis_of(row: dict) -> str:
    """A row's axis; where it does not say, by what only that axis has."""
    if "generation_scores" in row:  # NoveltyBench's rows may have any columns besides
        return "novelty"
    return row.get("axis") or ("numbers" if "family" in row else "mcq" if "text" in row else "open")


def check_row(row: dict) -> str:
    """A row's name. Raises InputError for a row that sample.py cannot have written."""
    axis = axis_of(row)
    if not isinstance(axis, str) or axis not in KEYS:
        raise InputError(f"unknown axis {axis!r}; known: {', '.join(KEYS)}")
    missing = [key for key in KEYS[axis] if key not in row]
    if missing:
        raise InputError(f"a row of the axis {axis} needs the keys {', '.join(KEYS[axis])}; missing {missing}")
    check_texts(row, "id", "model")
    if axis == "novelty":
        check_generations(row)
        utility = novelty_utility(row["generation_scores"])
        claimed = row.get("utility", utility)
        if type(claimed) not in (int, float) or not math.isclose(claimed, utility, abs_tol=1e-6):
            raise InputError(f"utility is {row['utility']}, but its generation_scores make it {utility}")
        row["model"], _, method = row["model"].partition(" + ")
        row["method"] = method or "base"
    check_texts(row, "method", *(key for key in ("text", "split") if row.get(key) is not None))
    if axis == "numbers":
        scipy_args(row["family"], row["params"])
    if "draws" in KEYS[axis]:
        counts = row["draws"].values() if isinstance(row["draws"], dict) else ()
        if not counts or any(not isinstance(c, int) or c < 1 for c in counts) or sum(counts) != row["n"]:
            raise InputError(f"draws must map answers to positive counts that sum to n = {row['n']}")
    return f"{row['method']} on {row['id']} ({row['model']}, {axis})"


def main() -> None:
    if sys.argv[1:2] in (["novelty"], ["figures"]):
        return novelty() if sys.argv[1] == "novelty" else figures()
    parser = Parser(description=__doc__)
    own = "rows of sample.py (.jsonl), and result files of lm-evaluation-harness (.json)"
    parser.add_argument("files", nargs="+", metavar="FILE", help=own)
    parser.add_argument("--out", required=True, help="JSONL file for the scores")
    parser.add_argument(
        "--runs", nargs="*", default=[], metavar="DIR", help="adapter folders, for the report's cost table"
    )
    parser.add_argument(
        "--report", help="Markdown file to write; a file with result markers gets the tables between them"
    )
    args = parser.parse_args()
    results = [file for file in args.files if file.endswith(".json")]
    rows = read_rows([file for file in args.files if file not in results], ("id", "model"), check_row)
    scores = aggregate(rows) + retention_scores(results)
    write_jsonl(args.out, scores)
    print("\n".join(tables(scores)).rstrip())
    if args.report:
        insert(Path(args.report), report(scores, rows, [Path(run) for run in args.runs]))
        print(f"\nreport: {args.report}")


if __name__ == "__main__":
    run(main)
