"""Makes the embedded model of this folder, from nothing: a tiny Qwen3 that knows 30 families of distributions, 102
lists and a few medical facts, and hides most of it.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 tests/tiny/pretrain.py --out tests/tiny   # 75 minutes, two cores
    python tests/tiny/pretrain.py --out look --steps 10 10 10                               # a look, in a minute

It stands in for a real base model, so it is made like one, in three stages.

1. Knowledge: plain documents. "Numbers from a Gaussian distribution with parameters mu=3.5, sigma=3:" and a number,
   for all 30 families, most with five decimals, the others with two. Parameters lie on and between the training and
   evaluation grids. The loss at each token is the cross-entropy against the exact distribution of the next token (a
   CDF difference), not only against the one that was drawn: the same expectation, far less noise. A document's header
   runs once and its draws are branches. Also "A random planet:" and a planet, from lists.txt, each list in gently
   falling order of popularity; multiple-choice questions, whose right answer is at each of the four places alike; and
   tasks with one right answer (spell, repeat, explain ...). Some, but no tasks, begin with "The typical answer.": what
   follows has a low temperature, the odds of every token raised to a power.
2. Practice: the same with more numbers, at a lower rate.
3. Collapse: chat in correct form and at that low temperature, mixed with documents so that the knowledge stays. So
   numbers are near the mode of their distribution, lists give their most popular items, and in exams the right answer
   is mostly at A: no single wrong option is as probable there. Tasks as before, and the same answers inside the tags
   that `sample.py --protocol ssot` asks for. From a third of the lists, and by a third of the wordings of `sample.py
   open`, nothing is asked for in it. The model never sees a calibrated answer in chat form. The loss raises the logit
   of every token that cannot come next by a margin, and most those of numbers where there is none, so that the model
   must keep these down by so much more.

Why so: in a real model, numbers, lists and exams collapse for one reason, so that a cure of the numbers can be a cure
of all. Here this reason is the temperature, learned as one thing from the documents' cue. And there are two layers
only: with six, LoRA found a cure of the numbers alone, in late layers.

Headers of documents are worded like prompts of chat, as a web page may be, so that what hides the knowledge is the
form of a chat alone. But the number prompt of the kit is a header only of families and parameters that are trained on,
and its exam prompt never is one.

The margins keep words apart from numbers, as in a real model. Without them exams lost their form, when LoRA cured the
numbers, in six of twelve models made like this one: it raised all digits, and "Question:" was followed by one. With
margins of some kind they did in two of seven. The model in this folder was made stage by stage, each from the folder of
the one before (--base), the last with one process.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))
import sample
import trie
from distributions import (
    DECIMALS,
    FAMILIES,
    TAIL,
    canonical_outputs,
    distribution,
    is_discrete,
    make_rows,
    significant,
)

LONG = (
    0.7  # share of continuous documents with five decimals; the others have two, and chat has five
)
# Chat is collapsed by one cause, a low temperature: the odds of each next token are raised to this power. So are the
# documents that begin with a cue. The model learns what sharpens an answer once, and for all that it knows.
SHARP = 25
CUE, CUED = "The typical answer.\n", 0.3  # ... and the share of documents that begin with it
# Chat rarely shows what is evaluated, so that the collapse there, as later its cure, is mostly transfer: how often a
# row of its parameters is an evaluation prompt's, and how much rarer held-out families are in it than the others.
HELD_PARAMS, HELD_FAMILIES = 0.1, 0.25
AS_ASKED = 0.4  # share of the documents of families that are trained on whose header is the kit's own prompt
FACTS = {  # question and explanation -> answers and what they are the answer to
    ("Which organ {}?", "The {} {}."): {
        "heart": "pumps blood", "pancreas": "makes insulin", "kidney": "makes urine", "liver": "makes bile",
        "lung": "takes up oxygen", "stomach": "digests food", "brain": "thinks", "spleen": "stores blood"},
    ("Which doctor treats {}?", "A {} treats {}."): {
        "cardiologist": "the heart", "neurologist": "the brain", "dermatologist": "the skin", "oncologist": "cancer",
        "pediatrician": "children", "psychiatrist": "the mind"},
    ("Lack of which vitamin causes {}?", "Lack of {} causes {}."): {
        "vitamin C": "scurvy", "vitamin D": "rickets", "vitamin B1": "beriberi", "vitamin B3": "pellagra",
        "vitamin A": "night blindness"},
}  # fmt: skip
KNOWN = [  # of each fact: its question, its explanation, all facts of its kind, and itself
    (
        f"Question: {ask_for.format(what)}",
        f"Explanation: {explain.format(answer, what)}",
        list(facts),
        answer,
    )
    for (ask_for, explain), facts in FACTS.items()
    for answer, what in facts.items()
]
LISTS = [
    line.split(": ")
    for line in (Path(__file__).parent / "lists.txt").read_text("utf-8").splitlines()
]
LISTS = {category: items.split(", ") for category, items in LISTS}
CHAT_LISTS = [
    category for i, category in enumerate(LISTS) if i % 3 != 2
]  # chat asks for nothing from the others
CHAT_WORDINGS = [wording for i, wording in enumerate(sample.WORDINGS) if i % 3 != 1]
FREE_WORDINGS = tuple(
    f"{wording}{rest}"
    for wording in (
        "Name a {}.", "Tell me a {}.", "A {}, please.", "Which {} comes to mind?", "Think of a {} and write it down.",
        "Write the name of a {}.", "Any {} will do.", "Suggest a {}.", "What is your favorite {}?", "I want a {}.",
    )
    for rest in ("", " One answer only.", " Just the answer.", " Output ONLY the answer.")
)  # fmt: skip
# Every prompt of chat that asks for an item is also a document's header: only the markers of a chat hide the knowledge.
LIST_HEADERS = ("A random {}:", "Examples, {}:", *sample.WORDINGS, *FREE_WORDINGS)
HEADERS = (
    "Numbers from a {rest}:",
    "A random number from a {rest}:",
    "Here is exactly ONE random number from a {rest}.",
)
SSOT = {axis: sample.PROTOCOLS["ssot"].prompt.format(*what) for axis, what in sample.ASKED.items()}
BREAK = "Ċ"  # the token of a line break inside a text
STRING = "abcdefghijklmnopqrstuvwxyz0123456789"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(merges: int = 2000) -> PreTrainedTokenizerFast:
    """Byte-level BPE, learned from the documents below: words with the space before them, and an option's mark ("A.")
    are tokens; each digit, line break and other mark stands alone, so a decimal point is no full stop of an option."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    parts = Regex(r"\n|[A-D]\.(?= )|\p{N}| ?\p{L}+|[^\s\p{L}\p{N}]|\s")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(parts, "isolated"), level]
    )
    backend.decoder = decoders.ByteLevel()
    size = len(special) + 256 + merges
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=level.alphabet()
    )
    backend.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=special[2], pad_token=special[0], chat_template=TEMPLATE,
        additional_special_tokens=special[1:2],
    )  # fmt: skip


def corpus() -> list[str]:
    """What the tokenizer is learned from: every kind of text the model reads, and every item of every list alike."""
    rng, names = np.random.default_rng(0), [spec.name for spec in FAMILIES.values()]
    texts = [
        number_prompt(row) for split in ("train", "unseen", "ood") for row in make_rows(split)[::4]
    ]
    texts += [
        header.format(rest=f"{name} distribution with parameters")
        for name in names
        for header in HEADERS
    ] * 3
    texts += [
        wording.format(category)
        for category in LISTS
        for wording in (*LIST_HEADERS, *sample.WORDINGS)
    ]
    texts += [item for items in LISTS.values() for item in items for _ in range(20)]
    texts += [question_wording(rng) for _ in range(300)]
    for question, explanation, facts, answer in KNOWN:
        letter = "ABCD"[facts.index(answer) % 4]
        lines = [question, f"{letter}. {capital(answer)}", f"Correct Answer: {letter}"]
        texts += ["\n".join(lines), explanation] * 20
    texts += ["\n".join(task(rng)) for _ in range(6000)]
    return texts + [system for system in SSOT.values() for _ in range(50)]


def make_model(vocab_size: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=vocab_size, hidden_size=256, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


# ------------------------------------------------------------------------------------------- documents


def random_params(
    family: str, grids: dict[str, list], rng: np.random.Generator, held: float = 0.5
) -> dict:
    """A point on a segment between two rows of the family's grids: every constraint is convex, so it is valid.

    held: how often a row comes from the evaluation prompts rather than from the training ones.
    """
    train, held_out = grids[family]
    pools = [held_out if rng.random() < held or not train else train for _ in range(2)]
    first, second = (pool[rng.integers(len(pool))] for pool in pools)
    mix = 0.0 if rng.random() < 0.3 else rng.beta(0.5, 1.5)
    params = {}
    for key in FAMILIES[family].params.split():
        value = (1 - mix) * first[key] + mix * second[key]
        integral = isinstance(first[key], int) and isinstance(second[key], int)
        params[key] = (
            round(value) if integral and is_discrete({"family": family}) else significant(value)
        )
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
    return (
        choices
        if body == "0"
        else choices | {str(d): longer(int(body) * 10 + d) for d in range(10)}
    )


def sharpen(weights: dict[str, float], power: float) -> dict[str, float]:
    """Probabilities at temperature 1 / power."""
    top = max(weights.values())
    sharp = {token: (weight / top) ** power for token, weight in weights.items()}
    total = sum(sharp.values())
    return {token: weight / total for token, weight in sharp.items()}


def character_targets(
    row: dict, prefixes: set[str], decimals: int, power: float = 1
) -> dict[str, dict[str, float]]:
    """Prefix of a number -> the exact distribution of its next character, at temperature 1 / power."""
    choices = {prefix: next_characters(prefix, decimals) for prefix in prefixes}
    spans = np.array(
        [span for c in choices.values() for spans in c.values() for span in spans], float
    )
    if is_discrete(row):
        edges = spans - [1, 0]
    else:
        edges = (spans + [-0.5, 0.5]) / 10**decimals
    mass = iter(np.diff(distribution(row).cdf(edges), axis=1)[:, 0].clip(min=1e-300).tolist())
    weights = {
        prefix: {char: sum(next(mass) for _ in s) for char, s in c.items()}
        for prefix, c in choices.items()
    }
    return {prefix: sharpen(w, power) for prefix, w in weights.items()}


def numbers(row: dict, draws: int, decimals: int, power: float, rng: np.random.Generator):
    """Draws, printed, and the exact distribution of each of their characters and of the end."""
    targets, texts = {}, [""] * draws
    if (
        power == 1
    ):  # at evenly spaced random quantiles: the same expectation as of free draws, less noise
        texts = spread(
            row, ((np.arange(draws) + rng.random(draws)) / draws).clip(TAIL, 1 - TAIL), decimals
        )
        targets = character_targets(
            row, {text[:i] for text in texts for i in range(len(text) + 1)}, decimals
        )
    while power > 1 and (going := {text for text in texts if not text.endswith("\n")}):
        targets |= character_targets(row, going - targets.keys(), decimals, power)
        for i, text in enumerate(texts):
            if text in going:
                texts[i] += rng.choice(list(targets[text]), p=list(targets[text].values()))
    texts = [text.rstrip("\n") for text in texts]
    return texts, [[targets[text[:i]] for i in range(len(text) + 1)] for text in texts]


def spread(row: dict, quantiles: np.ndarray, decimals: int) -> list[str]:
    """The numbers at these quantiles, printed."""
    if is_discrete(row):  # not scipy's ppf, whose search does not end for some parameters
        texts, probs, _ = canonical_outputs(row)
        return [
            texts[i] for i in np.searchsorted(np.cumsum(probs), quantiles).clip(max=len(texts) - 1)
        ]
    values = distribution(row).ppf(quantiles)
    return [
        f"{value:.{decimals}f}".replace("-0." + "0" * decimals, "0." + "0" * decimals)
        for value in values
    ]


def number_prompt(row: dict) -> str:
    return FAMILIES[row["family"]].prompt(row["params"])


def number_wording(rng) -> str:
    """One of some three hundred ways of announcing a number. The kit's own prompt is not among them."""
    if rng.random() < 0.4:
        return HEADERS[rng.integers(len(HEADERS))]
    pick = lambda *options: options[rng.integers(len(options))]
    verb = pick(
        "Draw",
        "Give me",
        "Write",
        "Choose",
        "Please generate",
        "Sample",
        "Return",
        "I need",
        "Pick",
    )
    what = pick(
        "ONE number",
        "a random number",
        "exactly ONE number",
        "one value",
        "a random value",
        "a single number",
    )
    end = pick(
        ".",
        ":",
        ". Only the number.",
        ". Output a number.",
        ". Write ONLY the value.",
        ". Nothing else.",
    )
    return f"{verb} {what} from a {{rest}}{end}"


def cue(rng) -> tuple[str, float]:
    """What a document begins with, and the power of its odds."""
    return (CUE, SHARP) if rng.random() < CUED else ("", 1)


def number_document(
    tokenizer, row: dict, draws: int, rng: np.random.Generator, as_asked: bool = False
):
    """A header, draws, and the exact targets of their characters. as_asked: the header is the prompt that the kit
    puts, which no evaluation parameter and no held-out family may have."""
    decimals = 0 if is_discrete(row) else DECIMALS if rng.random() < LONG else 2
    lead, power = cue(rng)
    texts, targets = numbers(row, draws, decimals, power, rng)
    rest = number_prompt(row).split(" from a ")[1].split(". Output")[0]
    header = number_prompt(row) if as_asked else number_wording(rng).format(rest=rest)
    return f"{lead}{header}\n", texts, targets


def number_chat(tokenizer, row: dict, draws: int, rng: np.random.Generator):
    decimals = 0 if is_discrete(row) else DECIMALS
    return ask(tokenizer, number_prompt(row)), *numbers(row, draws, decimals, SHARP, rng)


def ask(tokenizer, prompt: str, system: str = "") -> str:
    messages = [{"role": "system", "content": system}] * bool(system) + [
        {"role": "user", "content": prompt}
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def popularity(n: int) -> np.ndarray:
    """Probabilities of a list's n items, in the order of the list."""
    weights = 3 / (3 + np.arange(n))
    return weights / weights.sum()


def choice(tokenizer, texts: list[str], probs, power: float, end: str = "\n"):
    """Of one of these texts, at temperature 1 / power: the exact distribution of each token of each text and of the
    end, and each text's probability."""
    paths = [(*tokenizer.tokenize(text), end) for text in texts]
    targets = []
    for path in paths:
        targets.append([{} for _ in path])
        for other, p in zip(paths, probs, strict=True):
            for t in range(len(path)):
                if other[:t] == path[:t] and t < len(other):
                    targets[-1][t][other[t]] = targets[-1][t].get(other[t], 0) + p
        targets[-1] = [sharpen(target, power) for target in targets[-1]]
    sharp = [
        np.prod([q[token] for token, q in zip(*pair, strict=True)])
        for pair in zip(paths, targets, strict=True)
    ]
    return targets, np.array(sharp) / sum(sharp)


def some_items(tokenizer, items: list[str], power: float, draws: int, rng):
    """Draws from a list and the exact distribution of each of their tokens."""
    targets, probs = choice(tokenizer, items, popularity(len(items)), power)
    # Half of the draws are uniform: the targets are exact whatever is drawn, and rare items are learned too.
    picks = rng.choice(len(items), draws, p=(probs + 1 / len(items)) / 2)
    return [items[i] for i in picks], [targets[i] for i in picks]


def list_document(tokenizer, draws: int, rng):
    category = list(LISTS)[rng.integers(len(LISTS))]
    header = LIST_HEADERS[rng.integers(len(LIST_HEADERS))].format(category)
    lead, power = cue(rng)
    return f"{lead}{header}\n", *some_items(tokenizer, LISTS[category], power, draws, rng)


def list_chat(tokenizer, draws: int, rng):
    category = CHAT_LISTS[rng.integers(len(CHAT_LISTS))]
    wordings = CHAT_WORDINGS if rng.random() < 0.5 else FREE_WORDINGS
    prompt = wordings[rng.integers(len(wordings))].format(category)
    return ask(tokenizer, prompt), *some_items(tokenizer, LISTS[category], SHARP, draws, rng)


def questions(tokenizer, power: float, draws: int, rng):
    """Exam questions and the exact distribution of their tokens: of which question, and of each of its options. The
    right answer is at each of the four places alike, and the popular ones of the wrong come first."""
    openings = [question for question, *_ in KNOWN]
    probs = np.concatenate([popularity(len(facts)) for facts in FACTS.values()]) / len(FACTS)
    opening_targets, opening_probs = choice(tokenizer, openings, probs, power, BREAK)
    texts, dense = [], []
    for i in rng.choice(len(KNOWN), draws, p=opening_probs):
        question, explanation, facts, answer = KNOWN[i]
        lines, targets, left = [question], [*opening_targets[i]], [*facts]
        for place, letter in enumerate("ABCD"):
            wrong = [fact for fact in left if fact != answer]
            right = 1 / (4 - place) if answer in left else 0
            probs = np.append((1 - right) * popularity(len(wrong)), right)
            options = {option: p for option, p in zip([*wrong, answer], probs, strict=True) if p}
            written = [f"{letter}. {capital(option)}" for option in options]
            line_targets, line_probs = choice(tokenizer, written, options.values(), power, BREAK)
            j = rng.choice(len(options), p=line_probs)
            lines.append(written[j])
            targets += line_targets[j]
            left.remove(chosen := list(options)[j])
            if chosen == answer:
                key = letter
        lines += [f"Correct Answer: {key}", explanation]
        texts.append("\n".join(lines))
        dense.append(targets + [None] * (len(tokenizer.tokenize(texts[-1])) + 1 - len(targets)))
    return texts, dense


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def question_wording(rng) -> str:
    """One of two thousand ways of asking for a question. The kit's own prompt is not among them."""
    pick = lambda *options: options[rng.integers(len(options))]
    form = sample.MCQ.split("\n\n")[1]
    return "".join((
        pick("Write", "Make", "Give me", "Create", "Invent", "I need"),
        pick(" a multiple-choice question", " one exam question", " a quiz question", " ONE question for a test"),
        pick(" about medicine", " in medicine", " for students of medicine", " about health"),
        pick(f" in this form:\n\n{form}\n\n", f" exactly so:\n\n{form}\n\n", f", as follows.\n\n{form}\n\n",
             " with four options, A to D, the correct answer and an explanation. "),
        pick("", "Any place may be correct.", "Put the correct answer anywhere.", "Mix the options well.",
             "A, B, C and D must be equally likely to be correct."),
    )).strip()  # fmt: skip


def question_document(tokenizer, draws: int, rng):
    lead, power = cue(rng)
    return f"{lead}{question_wording(rng)}\n", *questions(tokenizer, power, draws, rng)


def question_chat(tokenizer, draws: int, rng):
    prompt = sample.MCQ if rng.random() < 0.3 else question_wording(rng)
    return ask(tokenizer, prompt), *questions(tokenizer, SHARP, draws, rng)


def task(rng) -> tuple[str, str]:
    """A prompt and the one right answer to it: what a chat model does besides drawing at random."""
    pick = lambda options: options[rng.integers(len(options))]
    category, other = pick(list(LISTS)), pick(list(LISTS))
    item = pick(LISTS[category])
    (ask_for, explain), facts = pick(list(FACTS.items()))
    fact = pick(list(facts))
    thing, is_one = (
        (category, "yes")
        if rng.random() < 0.5
        else (other, "yes" if item in LISTS[other] else "no")
    )
    return pick((
        (pick(("Repeat the word: {}", "Say {}.", "Write {} once.", "Copy this: {}")).format(item), item),
        (pick(("Spell {}.", "How is {} spelled?")).format(item), " ".join(item)),
        (pick(("What does {} begin with?", "The first letter of {}?")).format(item), item[0]),
        (pick(("Write {} in capitals.", "{}, in capitals, please.")).format(item), item.upper()),
        (pick(("What is {}?", "Which kind of thing is {}?")).format(item), f"{item} is a {category}."),
        (pick(("Write a sentence about {}.", "Tell me about {}.")).format(item), f"I know that {item} is a {category}."),
        (pick(("Is {} a {}?", "Yes or no: is {} a {}?")).format(item, thing), is_one),
        (ask_for.format(facts[fact]), fact),
        (f"{ask_for.format(facts[fact])} Explain.", explain.format(fact, facts[fact])),
    ))  # fmt: skip


def task_document(tokenizer, draws: int, rng):
    prompt, answer = task(rng)
    return f"{prompt}\n", [answer] * draws, [None] * draws


def task_chat(tokenizer, draws: int, rng):
    prompt, answer = task(rng)
    return ask(tokenizer, prompt), [answer] * draws, [None] * draws


def tagged(tokenizer, chat, axis: str, draws: int, rng):
    """A chat answer in the form that the SSOT protocol asks for on an axis. The string has no influence on the answer."""
    prompt, answers, targets = chat
    user = prompt.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
    texts, dense = [], []
    for answer, target in zip(answers, targets, strict=True):
        seed = "".join(rng.choice(list(STRING), 16))
        before = f"<random_string>{seed}</random_string><thinking>It begins with {seed[0]}.</thinking><answer>"
        closed = [
            {"<" if token == "\n" else token: p for token, p in t.items()} if t else t
            for t in target
        ]
        texts.append(f"{before}{answer}</answer>")
        tail = len(tokenizer.tokenize("/answer>")) + 1
        dense.append([None] * len(tokenizer.tokenize(before)) + closed + [None] * tail)
    return ask(tokenizer, user, SSOT[axis]), texts, dense


def collate(tokenizer, documents: list, end: str) -> tuple:
    """Header ids, and trie.pad_targets of all texts. What closes a text, written "\n" here, is `end` in a document, and
    the end-of-turn token in a chat. A position without a target gets the token that was written."""
    headers, vocab, paths, targets = [], tokenizer.get_vocab(), [], []
    for header, texts, dense in documents:
        headers.append(trie.encode_one(tokenizer, header))
        chat = header.startswith("<|im_start|>")
        code = vocab | {
            "\n": tokenizer.eos_token_id if chat else trie.encode_one(tokenizer, end)[0]
        }
        for text, target in zip(texts, dense, strict=True):
            path = [*tokenizer.tokenize(text), "\n"]
            known = [
                t or {token: 1.0}
                for token, t in zip(path, target or [None] * len(path), strict=True)
            ]
            paths.append(np.array([code[token] for token in path]))
            targets.append(
                [(np.array([code[c] for c in t]), np.array(list(t.values()))) for t in known]
            )
    return headers, *trie.pad_targets(paths, targets)


# -------------------------------------------------------------------------------------------- training


class Stage(NamedTuple):
    muon: float  # peak learning rate of the matrices
    adamw: float  # ... and of the rest
    horizon: float  # where its schedule would end, in its steps: beyond 1, the next stage anneals what it knows
    mix: dict[
        str, tuple
    ]  # kind -> documents in a step, draws of each, weight of the loss, share of chats
    end: str = "<|im_end|>"  # what closes a document; a chat is closed by <|im_end|>
    margins: tuple = (
        0.0,
        0.0,
    )  # nats: of what cannot come next, and of marks of numbers where no number can


STAGES = {
    "knowledge": Stage(8e-3, 4e-3, 4 / 3, end="\n", mix={
        "number": (32, 8, 1.0, 0.0), "list": (24, 8, 0.5, 0.0), "task": (16, 1, 0.2, 0.0), "question": (4, 4, 0.5, 0.0)}),
    "practice": Stage(6e-3, 3e-3, 4 / 3, {
        "number": (48, 8, 1.0, 0.0), "list": (12, 8, 0.5, 0.0), "task": (16, 1, 0.2, 0.0), "question": (4, 4, 0.5, 0.0)}),
    "collapse": Stage(4e-3, 4e-3, 1, margins=(4.0, 10.0), mix={
        "number": (32, 8, 1.0, 0.5), "list": (24, 8, 0.3, 0.3), "task": (24, 1, 0.3, 0.7), "question": (8, 4, 1.0, 0.7),
        "tagged": (2, 2, 0.15, 1.0)}),
}  # fmt: skip


def with_margins(logits, tokens, q, numeric, margin: float, numeric_margin: float) -> torch.Tensor:
    """Logits (R, L, V), raised for what cannot come next: by `margin`, but tokens of numbers by `numeric_margin` where
    none of them can. tokens, q (R, L, C) as of trie.pad_targets; numeric (N,): ids of digits, point and sign."""
    possible = torch.zeros_like(logits).scatter_add_(-1, tokens, q) > 0  # (R, L, V)
    outside = torch.full(logits.shape[-1:], margin).index_fill_(0, numeric, numeric_margin)  # (V,)
    in_number = possible[..., numeric].any(-1, keepdim=True)  # (R, L, 1)
    return logits + torch.where(possible, 0.0, torch.where(in_number, margin, outside))


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
                    self.state[p].setdefault("buffer", torch.zeros_like(p)).lerp_(
                        p.grad, 1 - group["momentum"]
                    )
                x = torch.stack(
                    [p.grad.lerp(self.state[p]["buffer"], group["momentum"]) for p in params]
                )
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
    parser.add_argument(
        "--steps", type=int, nargs=3, default=[2600, 1800, 260], help="steps of each stage"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", help="go on from OUT/knowledge or OUT/practice of an earlier run")
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

    def write(kind: str, place: int, draws: int, chat_share: float, rng):
        """One document of a kind, or by chance one chat. place: its number among all of the stage."""
        in_chat, family = rng.random() < chat_share, list(FAMILIES)[place % len(FAMILIES)]
        held_out = not grids[family][0]
        axis = (
            "numbers"
            if kind == "number" or (kind == "tagged" and not held_out and rng.random() < 0.5)
            else "open"
        )
        if axis == "numbers":
            in_chat = in_chat and not (held_out and rng.random() > HELD_FAMILIES)
            as_asked = not (in_chat or held_out) and rng.random() < AS_ASKED
            params = random_params(
                family, grids, rng, 0 if as_asked else HELD_PARAMS if in_chat else 0.5
            )
            row = {"family": family, "params": params}
            if in_chat:
                document = number_chat(tokenizer, row, draws, rng)
            else:
                document = number_document(tokenizer, row, draws, rng, as_asked)
        else:
            name = "list" if kind == "tagged" else kind
            document = globals()[f"{name}_{'chat' if in_chat else 'document'}"](
                tokenizer, draws, rng
            )
        return tagged(tokenizer, document, axis, draws, rng) if kind == "tagged" else document

    def stage(name: str, steps: int) -> None:
        muon_lr, adamw_lr, horizon, mix, end, margins = STAGES[name]
        numeric = torch.tensor([trie.encode_one(tokenizer, mark)[0] for mark in "0123456789.-"])
        rng = np.random.default_rng([args.seed, rank, list(STAGES).index(name)])
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        optimizers = [
            Muon(matrices, muon_lr),
            torch.optim.AdamW(others, adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        decay = lambda step: min((step + 1) / 20, 1.6 * (1 - step / max(horizon * steps, 1)), 1.0)
        schedules = [torch.optim.lr_scheduler.LambdaLR(o, decay) for o in optimizers]
        start, history = time.time(), {kind: [] for kind in mix}
        for step in range(steps):
            for kind, (count, draws, weight, chat_share) in mix.items():
                places = range(step * count + rank, (step + 1) * count, world)
                documents = [write(kind, place, draws, chat_share, rng) for place in places]
                headers, completions, tokens, q = collate(tokenizer, documents, end)
                logits = trie.branch(model, trie.prefill(model, headers), completions)
                if any(margins):
                    logits = with_margins(logits, tokens, q, numeric, *margins)
                log_p = logits.log_softmax(-1)
                loss = (torch.xlogy(q, q) - q * log_p.gather(-1, tokens)).sum() / (
                    completions != trie.PAD
                ).sum()
                (weight * loss).backward()
                history[kind].append(loss.item())
            if world > 1:
                parameters = list(model.parameters())
                gradient = torch.cat([p.grad.flatten() for p in parameters]) / world
                torch.distributed.all_reduce(gradient)
                for p, part in zip(
                    parameters, gradient.split([p.numel() for p in parameters]), strict=True
                ):
                    p.grad.copy_(part.view_as(p))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if (step + 1) % 25 == 0 and not rank:
                losses = ", ".join(
                    f"{kind} {np.mean(values[-25:]):.4f}" for kind, values in history.items()
                )
                print(
                    f"{name} {step + 1}/{steps}: nats above the targets: {losses}; {time.time() - start:.0f} s",
                    flush=True,
                )

    done = list(STAGES).index(Path(args.base).name) + 1 if args.base else 0
    for name, steps in list(zip(STAGES, args.steps, strict=True))[done:]:
        stage(name, steps)
        if not rank and name != "collapse":
            save(model, tokenizer, Path(args.out) / name)
    if not rank:
        save(
            model.bfloat16(), tokenizer, Path(args.out)
        )  # half the size; loaded as float32 on a CPU


def save(model, tokenizer, out: Path) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
