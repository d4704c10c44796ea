"""Make the embedded model of this folder from nothing.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 tests/tiny/pretrain.py --out tests/tiny
    python tests/tiny/pretrain.py --out look --steps 10 10 10

The first command takes 75 minutes on two cores; the second, a quick look, takes one minute. The
script reads the item lists in lists.txt and the kit's own prompts. It writes the model and its
tokenizer to OUT, and the model as it was after each earlier stage to OUT/knowledge and
OUT/practice.

The result is a tiny Qwen3 that knows 30 families of distributions, 102 lists and a few medical
facts, but hides most of that knowledge in chat. It stands in for a real base model, so it is
trained like one, in three stages.

1) Knowledge: plain documents. A document is a header and a text that follows it:

   - numbers: "Numbers from a Gaussian distribution with parameters mu=3.5, sigma=3:" and a number,
     for all 30 families. Most continuous numbers have five decimals, the others two. Parameters
     lie on the training and evaluation grids and between their points.
   - lists: "A random planet:" and a planet. Popularity falls gently along each list.
   - exams: multiple-choice questions. The right answer is equally likely at each of four places.
   - tasks with one right answer: spell, repeat, explain and the like.

   The loss at a token is the cross-entropy with the exact distribution of the next token (for
   numbers, a difference of the CDF) rather than with the one token that was drawn. The expectation
   is the same, with far less noise. A header is read once, and its draws are branches behind it.
   Some documents, but no tasks, begin with the cue "The typical answer.": what follows has a low
   temperature, which means that the odds of every token are raised to a power.

2) Practice: the same documents, with more numbers and at a lower learning rate.

3) Collapse: well-formed chats at that low temperature, mixed with documents so that the knowledge
   stays. Numbers end up near the mode of their distribution, and lists give their most popular
   items. In exams the right answer is mostly at A, because no single wrong option is as probable
   there. Tasks are as before. Some chats give their answer inside the tags that `sample.py
   --protocol ssot` asks for. Chats never ask for a third of the lists, and never use a third of
   the wordings of `sample.py open`. The model never sees a calibrated answer in a chat.

   In this stage the loss adds a margin to the logit of every token that cannot come next. The
   model must push such a token down by that much more. Where no number can come next, the margin
   is largest for the tokens of numbers.

Why a temperature? In a real model, numbers, lists and exams collapse for one common reason, so
curing the numbers can cure them all. Here that reason is the temperature, which the model learns
as a single concept from the cue. For the same reason the model has only two layers: with six, LoRA
found a way to cure the numbers alone, in the late layers.

Document headers are worded like chat prompts, as a web page may be, so that nothing but the chat
format hides the knowledge. There are two exceptions. The kit's number prompt is a header only for
families and parameters that are trained on, and its exam prompt never is one.

Why margins? They keep words apart from numbers, as in a real model. Without them, six of twelve
models made like this one wrote malformed exams once LoRA had cured the numbers: LoRA raised all
digits, and one of them followed "Question:". With margins of some kind, two of seven did.

The model in this folder was made stage by stage, each from the folder of the one before (--base),
and the last stage with one process.
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
import distributions
import sample
import trie

# Chats collapse for one reason, a low temperature: the odds of each next token are raised to this
# power. So are those in the documents that begin with the cue. The model thus learns only once
# what sharpens an answer, for everything it knows.
SHARP = 25
CUE = "The typical answer.\n"
CUED = 0.3  # share of documents (but no tasks) that begin with the cue

LONG = 0.7  # share of continuous documents with five decimals; the others have two, chats five
AS_ASKED = 0.4  # share of documents of trained families whose header is the kit's own prompt

# Chats rarely show what is evaluated, so that the collapse there, and later its cure, is mostly
# transfer.
HELD_PARAMS = 0.1  # how often a chat takes a row of parameters from the evaluation prompts
HELD_FAMILIES = 0.25  # how often a chat keeps a held-out family; otherwise it becomes a document

END = "\n"  # in targets: the text ends here
BREAK = "Ċ"  # in targets: a line break inside the text, as the tokenizer spells it

# ---------------------------------------------------------------------------- what the model knows


class FactKind(NamedTuple):
    """Facts that can be asked for in the same words."""

    question: str
    explanation: str
    facts: dict[str, str]  # answer -> what it is the answer to

    def ask(self, answer: str) -> str:
        return self.question.format(self.facts[answer])

    def explain(self, answer: str) -> str:
        return self.explanation.format(answer, self.facts[answer])


FACTS = [
    FactKind("Which organ {}?", "The {} {}.", {
        "heart": "pumps blood",
        "pancreas": "makes insulin",
        "kidney": "makes urine",
        "liver": "makes bile",
        "lung": "takes up oxygen",
        "stomach": "digests food",
        "brain": "thinks",
        "spleen": "stores blood",
    }),
    FactKind("Which doctor treats {}?", "A {} treats {}.", {
        "cardiologist": "the heart",
        "neurologist": "the brain",
        "dermatologist": "the skin",
        "oncologist": "cancer",
        "pediatrician": "children",
        "psychiatrist": "the mind",
    }),
    FactKind("Lack of which vitamin causes {}?", "Lack of {} causes {}.", {
        "vitamin C": "scurvy",
        "vitamin D": "rickets",
        "vitamin B1": "beriberi",
        "vitamin B3": "pellagra",
        "vitamin A": "night blindness",
    }),
]  # fmt: skip


class ExamFact(NamedTuple):
    """What an exam question about one fact is made of."""

    question: str
    explanation: str
    options: list[str]  # the answers to all facts of its kind, the popular ones first
    answer: str


EXAM_FACTS = [
    ExamFact(
        question=f"Question: {kind.ask(answer)}",
        explanation=f"Explanation: {kind.explain(answer)}",
        options=list(kind.facts),
        answer=answer,
    )
    for kind in FACTS
    for answer in kind.facts
]


def read_lists() -> dict[str, list[str]]:
    """The 102 lists of lists.txt: category -> its items, the popular ones first."""
    text = (Path(__file__).parent / "lists.txt").read_text("utf-8")
    lists = {}
    for line in text.splitlines():
        category, items = line.split(": ")
        lists[category] = items.split(", ")
    return lists


LISTS = read_lists()
# Chats never ask for every third list, nor in every third wording of `sample.py open`.
CHAT_LISTS = [category for i, category in enumerate(LISTS) if i % 3 != 2]
CHAT_WORDINGS = [wording for i, wording in enumerate(sample.WORDINGS) if i % 3 != 1]

# ------------------------------------------------------------------------- how it may be asked for

FREE_REQUESTS = (
    "Name a {}.",
    "Tell me a {}.",
    "A {}, please.",
    "Which {} comes to mind?",
    "Think of a {} and write it down.",
    "Write the name of a {}.",
    "Any {} will do.",
    "Suggest a {}.",
    "What is your favorite {}?",
    "I want a {}.",
)
FREE_ENDINGS = ("", " One answer only.", " Just the answer.", " Output ONLY the answer.")
FREE_WORDINGS = tuple(request + ending for request in FREE_REQUESTS for ending in FREE_ENDINGS)

# Every chat prompt that asks for an item is also a document header, so only the markers of a chat
# hide the knowledge.
LIST_HEADERS = ("A random {}:", "Examples, {}:", *sample.WORDINGS, *FREE_WORDINGS)
NUMBER_HEADERS = (
    "Numbers from a {rest}:",
    "A random number from a {rest}:",
    "Here is exactly ONE random number from a {rest}.",
)

# The system prompts of `sample.py --protocol ssot`: axis -> prompt.
SSOT = {axis: sample.SSOT.format(*words) for axis, words in sample.SSOT_WORDS.items()}
STRING = "abcdefghijklmnopqrstuvwxyz0123456789"  # what the random string is made of

CHAT_START = "<|im_start|>"
CHAT_END = "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pick(rng: np.random.Generator, options):
    """One of the options, uniformly at random."""
    return options[rng.integers(len(options))]


def number_prompt(row: dict) -> str:
    """The kit's own prompt for a row with a family and params."""
    return distributions.FAMILIES[row["family"]].prompt(row["params"])


def description(row: dict) -> str:
    """How the kit's prompt describes a distribution.

    >>> description({"family": "gaussian", "params": {"mu": 3.5, "sigma": 3}})
    'Gaussian distribution with parameters mu=3.5, sigma=3'
    """
    return number_prompt(row).split(" from a ")[1].split(". Output")[0]


def number_wording(rng: np.random.Generator) -> str:
    """One of some three hundred ways to announce a number, with {rest} for its distribution.

    The kit's own prompt is not among them.
    """
    if rng.random() < 0.4:
        return pick(rng, NUMBER_HEADERS)
    verb = pick(rng, (
        "Draw", "Give me", "Write", "Choose", "Please generate", "Sample", "Return", "I need",
        "Pick",
    ))  # fmt: skip
    what = pick(rng, (
        "ONE number", "a random number", "exactly ONE number", "one value", "a random value",
        "a single number",
    ))  # fmt: skip
    end = pick(rng, (
        ".", ":", ". Only the number.", ". Output a number.", ". Write ONLY the value.",
        ". Nothing else.",
    ))  # fmt: skip
    return f"{verb} {what} from a {{rest}}{end}"


def question_wording(rng: np.random.Generator) -> str:
    """One of two thousand ways to ask for an exam question. The kit's own is not among them."""
    form = sample.MCQ.split("\n\n")[1]
    verb = pick(rng, ("Write", "Make", "Give me", "Create", "Invent", "I need"))
    what = pick(rng, (
        " a multiple-choice question", " one exam question", " a quiz question",
        " ONE question for a test",
    ))  # fmt: skip
    subject = pick(rng, (
        " about medicine", " in medicine", " for students of medicine", " about health",
    ))  # fmt: skip
    shape = pick(rng, (
        f" in this form:\n\n{form}\n\n",
        f" exactly so:\n\n{form}\n\n",
        f", as follows.\n\n{form}\n\n",
        " with four options, A to D, the correct answer and an explanation. ",
    ))  # fmt: skip
    balance = pick(rng, (
        "",
        "Any place may be correct.",
        "Put the correct answer anywhere.",
        "Mix the options well.",
        "A, B, C and D must be equally likely to be correct.",
    ))  # fmt: skip
    return f"{verb}{what}{subject}{shape}{balance}".strip()


def task(rng: np.random.Generator) -> tuple[str, str]:
    """A prompt and its one right answer: what a chat model does apart from drawing at random."""
    category = pick(rng, list(LISTS))
    other = pick(rng, list(LISTS))
    item = pick(rng, LISTS[category])
    kind = pick(rng, FACTS)
    fact = pick(rng, list(kind.facts))
    if rng.random() < 0.5:
        thing, is_one = category, "yes"
    else:
        thing, is_one = other, "yes" if item in LISTS[other] else "no"

    repeat = pick(rng, ("Repeat the word: {}", "Say {}.", "Write {} once.", "Copy this: {}"))
    spell = pick(rng, ("Spell {}.", "How is {} spelled?"))
    begin = pick(rng, ("What does {} begin with?", "The first letter of {}?"))
    capitals = pick(rng, ("Write {} in capitals.", "{}, in capitals, please."))
    identify = pick(rng, ("What is {}?", "Which kind of thing is {}?"))
    mention = pick(rng, ("Write a sentence about {}.", "Tell me about {}."))
    decide = pick(rng, ("Is {} a {}?", "Yes or no: is {} a {}?"))
    tasks = [
        (repeat.format(item), item),
        (spell.format(item), " ".join(item)),
        (begin.format(item), item[0]),
        (capitals.format(item), item.upper()),
        (identify.format(item), f"{item} is a {category}."),
        (mention.format(item), f"I know that {item} is a {category}."),
        (decide.format(item, thing), is_one),
        (kind.ask(fact), fact),
        (f"{kind.ask(fact)} Explain.", kind.explain(fact)),
    ]
    return pick(rng, tasks)


def capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


# ------------------------------------------------------------------------- the tokenizer and model


def make_tokenizer(merges: int = 2000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the texts of corpus().

    A word is a token together with the space before it, and so is the mark of an option ("A.").
    Each digit, each line break and each other mark stands alone, so the decimal point is never the
    same token as the full stop of an option.
    """
    special = ["<|endoftext|>", CHAT_START, CHAT_END]
    parts = Regex(r"\n|[A-D]\.(?= )|\p{N}| ?\p{L}+|[^\s\p{L}\p{N}]|\s")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(parts, "isolated")

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 256 + merges,
        special_tokens=special,
        initial_alphabet=bytes_only.alphabet(),
    )
    backend.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=CHAT_END,
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
        additional_special_tokens=[CHAT_START],
    )


def corpus() -> list[str]:
    """What the tokenizer is trained on: every kind of text that the model reads.

    The items of all lists are equally frequent in it.
    """
    rng = np.random.default_rng(0)
    texts = []
    for split in ("train", "unseen", "ood"):
        texts += [number_prompt(row) for row in distributions.make_rows(split)[::4]]

    headers = []
    for spec in distributions.FAMILIES.values():
        rest = f"{spec.name} distribution with parameters"
        headers += [header.format(rest=rest) for header in NUMBER_HEADERS]
    texts += headers * 3

    for category in LISTS:
        for wording in (*LIST_HEADERS, *sample.WORDINGS):
            texts.append(wording.format(category))
    for items in LISTS.values():
        for item in items:
            texts += [item] * 20

    texts += [question_wording(rng) for _ in range(300)]
    for fact in EXAM_FACTS:
        letter = "ABCD"[fact.options.index(fact.answer) % 4]
        option = f"{letter}. {capitalized(fact.answer)}"
        lines = [fact.question, option, f"Correct Answer: {letter}"]
        texts += ["\n".join(lines), fact.explanation] * 20

    for _ in range(6000):
        prompt, answer = task(rng)
        texts.append(f"{prompt}\n{answer}")
    for system in SSOT.values():
        texts += [system] * 50
    return texts


def make_model(vocab_size: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


# ------------------------------------------------------------------------ exact targets of numbers


class Grid(NamedTuple):
    """The parameters of one family."""

    train: list[dict]  # empty for a held-out family
    held: list[dict]  # those of the evaluation prompts


def parameter_grids() -> dict[str, Grid]:
    """family -> its Grid, in the order of FAMILIES."""
    grids = {family: Grid([], []) for family in distributions.FAMILIES}
    for split in ("train", "unseen", "ood"):
        for row in distributions.make_rows(split):
            grid = grids[row["family"]]
            rows = grid.train if split == "train" else grid.held
            rows.append(row["params"])
    return grids


def random_params(family: str, grid: Grid, rng: np.random.Generator, held: float = 0.5) -> dict:
    """A point on the segment between two random rows of the family's grid.

    Every constraint on parameters is convex, so the point is valid. `held` is how often a row comes
    from the evaluation prompts rather than from the training grid.
    """
    pools = []
    for _ in range(2):
        from_held = rng.random() < held
        pools.append(grid.held if from_held or not grid.train else grid.train)
    first, second = [pick(rng, pool) for pool in pools]

    mix = 0.0 if rng.random() < 0.3 else rng.beta(0.5, 1.5)
    discrete = distributions.is_discrete({"family": family})
    params = {}
    for name in distributions.FAMILIES[family].params.split():
        value = (1 - mix) * first[name] + mix * second[name]
        whole = isinstance(first[name], int) and isinstance(second[name], int)
        if discrete and whole:
            params[name] = round(value)
        else:
            params[name] = distributions.significant(value)
    return params


def next_characters(prefix: str, decimals: int) -> dict[str, list[tuple[float, float]]]:
    """For each character that may follow a number's prefix: which numbers then remain possible.

    They are given as spans (first, last) of integers k, for the numbers k / 10^decimals. Up to
    five more digits may follow before the decimal point.

    >>> next_characters("1.2", decimals=2)["3"]
    [(123, 123)]
    >>> next_characters("-0.1", decimals=2)["0"]
    [(-10, -10)]
    """
    unit = 10**decimals
    negative = prefix.startswith("-")
    magnitude = prefix.lstrip("-")

    def block(number: int, size: int) -> tuple[int, int]:
        """The numbers whose magnitude is in [number * size, (number + 1) * size)."""
        low, high = number * size, (number + 1) * size - 1
        if negative:
            return -high, -max(low, 1)  # there is no -0
        return low, high

    def longer(number: int) -> list[tuple[int, int]]:
        """The numbers whose digits before the point begin with those of `number`."""
        return [block(number, unit * 10**more) for more in range(6)]

    if "." in magnitude:
        whole, written = magnitude.split(".")
        missing = decimals - len(written)
        if missing == 0:
            return {END: [(-np.inf, np.inf)]}
        so_far = int(whole + written)
        size = 10 ** (missing - 1)
        return {str(digit): [block(so_far * 10 + digit, size)] for digit in range(10)}

    if not magnitude:
        choices = {str(digit): longer(digit) for digit in range(10)}
        choices["0"] = [block(0, unit)]  # no further digit may follow a leading 0
        if not negative:
            choices["-"] = [(-np.inf, -1)]
        return choices

    so_far = int(magnitude)
    choices = {"." if decimals else END: [block(so_far, unit)]}
    if magnitude != "0":
        for digit in range(10):
            choices[str(digit)] = longer(so_far * 10 + digit)
    return choices


def sharpen(weights: dict[str, float], power: float) -> dict[str, float]:
    """The probabilities proportional to weights ** power: temperature 1 / power.

    >>> sharpen({"a": 2, "b": 1}, power=2)
    {'a': 0.8, 'b': 0.2}
    """
    largest = max(weights.values())
    powers = {token: (weight / largest) ** power for token, weight in weights.items()}
    total = sum(powers.values())
    return {token: value / total for token, value in powers.items()}


def character_targets(
    row: dict, prefixes: set[str], decimals: int, power: float = 1
) -> dict[str, dict[str, float]]:
    """The exact distribution of the character after each prefix of a number: {prefix: {...}}.

    Temperature 1 / power. The end of the number is a character, too.
    """
    entries = []
    for prefix in prefixes:
        for character, spans in next_characters(prefix, decimals).items():
            entries += [(prefix, character, span) for span in spans]

    spans = np.array([span for _, _, span in entries], float)  # (S, 2)
    if distributions.is_discrete(row):
        edges = spans - [1, 0]  # the CDF at k includes k itself
    else:
        edges = (spans + [-0.5, 0.5]) / 10**decimals
    cdf = distributions.distribution(row).cdf(edges)
    masses = (cdf[:, 1] - cdf[:, 0]).clip(min=1e-300)  # never 0, so that every prefix has a target

    weights = {prefix: {} for prefix in prefixes}
    for (prefix, character, _), mass in zip(entries, masses.tolist(), strict=True):
        masses_after = weights[prefix]
        masses_after[character] = masses_after.get(character, 0) + mass
    return {prefix: sharpen(masses_after, power) for prefix, masses_after in weights.items()}


def prefixes_of(text: str) -> list[str]:
    """All prefixes of a text, from "" to the text itself."""
    return [text[:length] for length in range(len(text) + 1)]


def numbers(
    row: dict, draws: int, decimals: int, power: float, rng: np.random.Generator
) -> tuple[list[str], list[list[dict]]]:
    """Draw numbers at temperature 1 / power.

    Returns their texts and, for each text, the exact distributions of its characters and its end.
    """
    if power == 1:
        # One random quantile in each of `draws` equal strata: the expectation is that of
        # independent draws, with less noise.
        quantiles = (np.arange(draws) + rng.random(draws)) / draws
        tail = distributions.TAIL
        texts = spread(row, quantiles.clip(tail, 1 - tail), decimals)
        prefixes = {prefix for text in texts for prefix in prefixes_of(text)}
        targets = character_targets(row, prefixes, decimals)
    else:
        texts, targets = sharp_numbers(row, draws, decimals, power, rng)
    return texts, [[targets[prefix] for prefix in prefixes_of(text)] for text in texts]


def sharp_numbers(
    row: dict, draws: int, decimals: int, power: float, rng: np.random.Generator
) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Draw numbers character by character; returns texts and the targets after their prefixes."""
    texts = [""] * draws
    targets = {}
    while unfinished := {text for text in texts if not text.endswith(END)}:
        targets |= character_targets(row, unfinished, decimals, power)
        for i, text in enumerate(texts):
            if text in unfinished:
                target = targets[text]
                texts[i] += rng.choice(list(target), p=list(target.values()))
    return [text.removesuffix(END) for text in texts], targets


def spread(row: dict, quantiles: np.ndarray, decimals: int) -> list[str]:
    """The numbers at these quantiles, as texts."""
    if distributions.is_discrete(row):
        # subtle: not scipy's ppf, whose search never ends for some parameters.
        outputs, probs, _ = distributions.canonical_outputs(row)
        places = np.searchsorted(np.cumsum(probs), quantiles).clip(max=len(outputs) - 1)
        return [outputs[place] for place in places]

    zero = f"{0:.{decimals}f}"
    texts = []
    for value in distributions.distribution(row).ppf(quantiles):
        text = f"{value:.{decimals}f}"
        texts.append(zero if text == f"-{zero}" else text)
    return texts


# -------------------------------------------------------------------------- exact targets of words


def popularity(n: int) -> np.ndarray:
    """The probabilities of a list's n items, in the order of the list: gently falling."""
    weights = 3 / (3 + np.arange(n))
    return weights / weights.sum()


def choice(
    tokenizer, texts: list[str], probs, power: float, end: str = END
) -> tuple[list[list[dict]], np.ndarray]:
    """The exact targets of choosing one of these texts at temperature 1 / power.

    The temperature acts on each token. Returns, for each text, the distributions of its tokens and
    of the end; and each text's resulting probability, (N,).
    """
    paths = [(*tokenizer.tokenize(text), end) for text in texts]
    targets = []
    for path in paths:
        masses = [{} for _ in path]  # at each position: next token -> probability of its texts
        for other, p in zip(paths, probs, strict=True):
            for t in range(min(len(path), len(other))):
                if other[:t] != path[:t]:
                    break
                masses[t][other[t]] = masses[t].get(other[t], 0) + p
        targets.append([sharpen(mass, power) for mass in masses])

    sharp_probs = []
    for path, target in zip(paths, targets, strict=True):
        token_probs = [q[token] for token, q in zip(path, target, strict=True)]
        sharp_probs.append(np.prod(token_probs))
    return targets, np.array(sharp_probs) / sum(sharp_probs)


def some_items(
    tokenizer, items: list[str], power: float, draws: int, rng: np.random.Generator
) -> tuple[list[str], list[list[dict]]]:
    """Draw from a list. Returns the items and the exact distributions of their tokens."""
    targets, probs = choice(tokenizer, items, popularity(len(items)), power)
    # Half of the draws are uniform. The targets are exact whatever is drawn, and this way the model
    # learns the rare items, too.
    uniform = 1 / len(items)
    places = rng.choice(len(items), draws, p=(probs + uniform) / 2)
    return [items[place] for place in places], [targets[place] for place in places]


def questions(
    tokenizer, power: float, draws: int, rng: np.random.Generator
) -> tuple[list[str], list[list]]:
    """Write exam questions at temperature 1 / power. Returns texts and their targets.

    Which question it is, and each of its options, has an exact distribution: the right answer is
    equally likely at each of the four places, and popular wrong answers come first. What follows
    the options is certain, so its targets are None.
    """
    openings = [fact.question for fact in EXAM_FACTS]
    by_kind = [popularity(len(kind.facts)) for kind in FACTS]
    probs = np.concatenate(by_kind) / len(FACTS)
    opening_targets, opening_probs = choice(tokenizer, openings, probs, power, BREAK)

    texts, targets = [], []
    for i in rng.choice(len(EXAM_FACTS), draws, p=opening_probs):
        fact = EXAM_FACTS[i]
        lines = [fact.question]
        target = [*opening_targets[i]]
        left = [*fact.options]
        for place, letter in enumerate("ABCD"):
            options, probs = option_probs(left, fact.answer, place)
            marked = [f"{letter}. {capitalized(option)}" for option in options]
            line_targets, line_probs = choice(tokenizer, marked, probs, power, BREAK)
            chosen = rng.choice(len(options), p=line_probs)
            lines.append(marked[chosen])
            target += line_targets[chosen]
            left.remove(options[chosen])
            if options[chosen] == fact.answer:
                right_letter = letter

        text = "\n".join([*lines, f"Correct Answer: {right_letter}", fact.explanation])
        certain = len(tokenizer.tokenize(text)) + 1 - len(target)  # 1 for the end
        texts.append(text)
        targets.append(target + [None] * certain)
    return texts, targets


def option_probs(left: list[str], answer: str, place: int) -> tuple[list[str], np.ndarray]:
    """The options that are possible at a place (0 to 3) of an exam, and their probabilities.

    `left` holds the facts not yet used. If the right answer is among them, it is equally likely at
    each remaining place, and certain at the last.
    """
    wrong = [option for option in left if option != answer]
    right_prob = 1 / (4 - place) if answer in left else 0
    probs = np.append((1 - right_prob) * popularity(len(wrong)), right_prob)
    possible = np.flatnonzero(probs)
    options = [*wrong, answer]
    return [options[i] for i in possible], probs[possible]


# ----------------------------------------------------------------------------- documents and chats


class Document(NamedTuple):
    """A header, which is read once, and the texts that follow it, one branch each.

    targets[i][t] is the distribution of token t of text i, {token: probability}, or None where that
    token is certain. The last one is that of the text's end. If all of a text is certain,
    targets[i] itself is None. A chat is a document whose header is in the chat format.
    """

    header: str
    texts: list[str]
    targets: list


def random_cue(rng: np.random.Generator) -> tuple[str, float]:
    """What a document begins with, and the power to which its odds are raised."""
    return (CUE, SHARP) if rng.random() < CUED else ("", 1)


def chat_header(tokenizer, prompt: str, system: str = "") -> str:
    """A user's prompt in the chat template, up to where the answer begins."""
    messages = [{"role": "user", "content": prompt}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def number_document(
    row: dict, draws: int, rng: np.random.Generator, as_asked: bool = False
) -> Document:
    """Draws from a row's distribution. as_asked: the header is the kit's own prompt.

    Parameters that are evaluated, and held-out families, must never be written as_asked.
    """
    if distributions.is_discrete(row):
        decimals = 0
    else:
        decimals = distributions.DECIMALS if rng.random() < LONG else 2
    cue, power = random_cue(rng)
    texts, targets = numbers(row, draws, decimals, power, rng)
    if as_asked:
        header = number_prompt(row)
    else:
        header = number_wording(rng).format(rest=description(row))
    return Document(f"{cue}{header}\n", texts, targets)


def number_chat(tokenizer, row: dict, draws: int, rng: np.random.Generator) -> Document:
    decimals = 0 if distributions.is_discrete(row) else distributions.DECIMALS
    header = chat_header(tokenizer, number_prompt(row))
    return Document(header, *numbers(row, draws, decimals, SHARP, rng))


def list_document(tokenizer, draws: int, rng: np.random.Generator) -> Document:
    category = pick(rng, list(LISTS))
    header = pick(rng, LIST_HEADERS).format(category)
    cue, power = random_cue(rng)
    items, targets = some_items(tokenizer, LISTS[category], power, draws, rng)
    return Document(f"{cue}{header}\n", items, targets)


def list_chat(tokenizer, draws: int, rng: np.random.Generator) -> Document:
    category = pick(rng, CHAT_LISTS)
    wordings = CHAT_WORDINGS if rng.random() < 0.5 else FREE_WORDINGS
    header = chat_header(tokenizer, pick(rng, wordings).format(category))
    items, targets = some_items(tokenizer, LISTS[category], SHARP, draws, rng)
    return Document(header, items, targets)


def question_document(tokenizer, draws: int, rng: np.random.Generator) -> Document:
    cue, power = random_cue(rng)
    header = f"{cue}{question_wording(rng)}\n"
    return Document(header, *questions(tokenizer, power, draws, rng))


def question_chat(tokenizer, draws: int, rng: np.random.Generator) -> Document:
    prompt = sample.MCQ if rng.random() < 0.3 else question_wording(rng)
    header = chat_header(tokenizer, prompt)
    return Document(header, *questions(tokenizer, SHARP, draws, rng))


def task_document(tokenizer, draws: int, rng: np.random.Generator) -> Document:
    prompt, answer = task(rng)
    return Document(f"{prompt}\n", [answer] * draws, [None] * draws)


def task_chat(tokenizer, draws: int, rng: np.random.Generator) -> Document:
    prompt, answer = task(rng)
    return Document(chat_header(tokenizer, prompt), [answer] * draws, [None] * draws)


def tagged(tokenizer, chat: Document, axis: str, rng: np.random.Generator) -> Document:
    """A chat whose answers stand in the tags that the SSOT protocol asks for on an axis.

    The random string has no influence on the answer.
    """
    user_and_rest = chat.header.removeprefix(f"{CHAT_START}user\n")
    prompt = user_and_rest.partition(CHAT_END)[0]
    # Here an answer ends with the "<" of </answer>. The rest of the tag and the end are certain.
    certain_after = len(tokenizer.tokenize("/answer>")) + 1

    texts, targets = [], []
    for answer, target in zip(chat.texts, chat.targets, strict=True):
        string = "".join(rng.choice(list(STRING), 16))
        before = (
            f"<random_string>{string}</random_string>"
            f"<thinking>It begins with {string[0]}.</thinking><answer>"
        )
        texts.append(f"{before}{answer}</answer>")
        certain_before = len(tokenizer.tokenize(before))
        inside = [{"<" if token == END else token: p for token, p in q.items()} for q in target]
        targets.append([None] * certain_before + inside + [None] * certain_after)
    return Document(chat_header(tokenizer, prompt, SSOT[axis]), texts, targets)


WRITERS = {  # kind -> how it is written as a document, and as a chat
    "list": (list_document, list_chat),
    "task": (task_document, task_chat),
    "question": (question_document, question_chat),
}


def write_numbers(
    tokenizer, family: str, grid: Grid, draws: int, in_chat: bool, rng: np.random.Generator
) -> Document:
    """Numbers of a family, in a document or a chat, with random parameters."""
    held_out = not grid.train
    if in_chat and held_out:
        in_chat = rng.random() <= HELD_FAMILIES
    as_asked = not in_chat and not held_out and rng.random() < AS_ASKED

    if as_asked:
        held = 0.0
    elif in_chat:
        held = HELD_PARAMS
    else:
        held = 0.5
    row = {"family": family, "params": random_params(family, grid, rng, held)}
    if in_chat:
        return number_chat(tokenizer, row, draws, rng)
    return number_document(row, draws, rng, as_asked)


def write_document(
    tokenizer,
    grids: dict[str, Grid],
    kind: str,
    place: int,
    draws: int,
    chat_share: float,
    rng: np.random.Generator,
) -> Document:
    """Write a document of a kind or, with probability chat_share, a chat.

    place counts the documents of this kind within a stage: the families of numbers take turns.
    """
    in_chat = rng.random() < chat_share
    family = list(grids)[place % len(grids)]
    grid = grids[family]
    axis = "numbers" if kind == "number" else "open"
    if kind == "tagged" and grid.train and rng.random() < 0.5:  # held-out families are never tagged
        axis = "numbers"

    if axis == "numbers":
        document = write_numbers(tokenizer, family, grid, draws, in_chat, rng)
    else:
        as_document, as_chat = WRITERS["list" if kind == "tagged" else kind]
        write_one = as_chat if in_chat else as_document
        document = write_one(tokenizer, draws, rng)
    return tagged(tokenizer, document, axis, rng) if kind == "tagged" else document


def collate(tokenizer, documents: list[Document], document_end: str) -> tuple:
    """Stack the texts of B documents, R in all.

    Returns the ids of the headers (B lists), and what trie.pad_targets makes of all texts:
    completions (R, L), the possible tokens (R, L, C), and their probabilities q (R, L, C).

    A document's text is closed by document_end, a chat's by the end-of-turn token. Where a token is
    certain, its probability is 1.
    """
    vocabulary = tokenizer.get_vocab()
    headers, paths, targets = [], [], []
    for document in documents:
        headers.append(trie.encode_one(tokenizer, document.header))
        in_chat = document.header.startswith(CHAT_START)
        closing = CHAT_END if in_chat else document_end
        id_of = vocabulary | {END: trie.encode_one(tokenizer, closing)[0]}

        for text, target in zip(document.texts, document.targets, strict=True):
            path = [*tokenizer.tokenize(text), END]
            target = target or [None] * len(path)
            path_targets = []
            for token, q in zip(path, target, strict=True):
                q = q or {token: 1.0}
                ids = np.array([id_of[child] for child in q])
                path_targets.append((ids, np.array(list(q.values()))))
            paths.append(np.array([id_of[token] for token in path]))
            targets.append(path_targets)
    return headers, *trie.pad_targets(paths, targets)


# ---------------------------------------------------------------------------------------- training


class Share(NamedTuple):
    """The part of one kind of document in a step."""

    documents: int
    draws: int  # of each document
    weight: float  # of its loss
    chats: float  # share of its documents that are chats


class Stage(NamedTuple):
    muon_lr: float  # peak learning rate of the matrices
    adamw_lr: float  # ... and of the rest
    horizon: float  # where the schedule would end, in units of the stage's steps; see learning_rate
    document_end: str  # what closes a document; a chat is closed by <|im_end|>
    shares: dict[str, Share]
    margin: float = 0.0  # nats, for tokens that cannot come next
    number_margin: float = 0.0  # nats, for tokens of numbers where no number can come next


STAGES = {
    "knowledge": Stage(
        muon_lr=8e-3,
        adamw_lr=4e-3,
        horizon=4 / 3,
        document_end="\n",
        shares={
            "number": Share(documents=32, draws=8, weight=1.0, chats=0.0),
            "list": Share(documents=24, draws=8, weight=0.5, chats=0.0),
            "task": Share(documents=16, draws=1, weight=0.2, chats=0.0),
            "question": Share(documents=4, draws=4, weight=0.5, chats=0.0),
        },
    ),
    "practice": Stage(
        muon_lr=6e-3,
        adamw_lr=3e-3,
        horizon=4 / 3,
        document_end=CHAT_END,
        shares={
            "number": Share(documents=48, draws=8, weight=1.0, chats=0.0),
            "list": Share(documents=12, draws=8, weight=0.5, chats=0.0),
            "task": Share(documents=16, draws=1, weight=0.2, chats=0.0),
            "question": Share(documents=4, draws=4, weight=0.5, chats=0.0),
        },
    ),
    "collapse": Stage(
        muon_lr=4e-3,
        adamw_lr=4e-3,
        horizon=1,
        document_end=CHAT_END,
        margin=4.0,
        number_margin=10.0,
        shares={
            "number": Share(documents=32, draws=8, weight=1.0, chats=0.5),
            "list": Share(documents=24, draws=8, weight=0.3, chats=0.3),
            "task": Share(documents=24, draws=1, weight=0.3, chats=0.7),
            "question": Share(documents=8, draws=4, weight=1.0, chats=0.7),
            "tagged": Share(documents=2, draws=2, weight=0.15, chats=1.0),
        },
    ),
}


def with_margins(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    q: torch.Tensor,
    numeric: torch.Tensor,
    margin: float,
    number_margin: float,
) -> torch.Tensor:
    """Raise the logits (R, L, V) of tokens that cannot come next.

    tokens, q (R, L, C): as trie.pad_targets returns them. numeric (N,): the ids of the digits, the
    decimal point and the minus sign. These are raised by number_margin where none of them can come
    next; every other impossible token is raised by margin.
    """
    possible = torch.zeros_like(logits).scatter_add_(-1, tokens, q) > 0  # (R, L, V)
    in_number = possible[..., numeric].any(-1, keepdim=True)  # (R, L, 1)
    in_words = torch.full(logits.shape[-1:], margin)
    in_words.index_fill_(0, numeric, number_margin)  # (V,)
    raised = torch.where(in_number, margin, in_words)
    return logits + torch.where(possible, 0.0, raised)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024), with the update scaled like AdamW's, as torch.optim.Muon has it.

    torch.optim.Muon orthogonalizes matrix by matrix in bfloat16, which on a CPU takes as long as
    the rest of the step. This one stacks matrices of equal shape, in float32.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for shape in sorted({p.shape for p in group["params"]}):
                matrices = [p for p in group["params"] if p.shape == shape]
                self.update(matrices, group["lr"], group["momentum"])

    def update(self, matrices: list[torch.Tensor], lr: float, momentum: float) -> None:
        """One step of matrices that all have the same shape."""
        directions = []
        for p in matrices:
            average = self.state[p].setdefault("average", torch.zeros_like(p))
            average.lerp_(p.grad, 1 - momentum)
            directions.append(p.grad.lerp(average, momentum))  # Nesterov momentum
        shape = matrices[0].shape
        updates = orthogonalized(torch.stack(directions))
        for p, update in zip(matrices, updates, strict=True):
            p.add_(update, alpha=-lr * 0.2 * max(shape) ** 0.5)


def orthogonalized(x: torch.Tensor) -> torch.Tensor:
    """Move every singular value of each matrix in x (N, H, W) towards 1, by Newton-Schulz."""
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    wide = x.shape[1] <= x.shape[2]
    for _ in range(5):
        gram = x @ x.mT if wide else x.mT @ x  # the smaller of the two
        poly = -4.7750 * gram + 2.0315 * gram @ gram
        x = 3.4445 * x + (poly @ x if wide else x @ poly)
    return x


def learning_rate(step: int, steps: int, horizon: float) -> float:
    """The learning rate of a step, as a multiple of its peak.

    It warms up over 20 steps, stays at the peak, and then falls in a straight line that would reach
    0 after horizon * steps. With a horizon beyond 1 it ends above 0: the next stage goes on from
    there.
    """
    warmup = (step + 1) / 20
    decay = 1.6 * (1 - step / max(horizon * steps, 1))
    return min(warmup, decay, 1.0)


def average_gradients(model, world: int) -> None:
    """Give every process the mean of all processes' gradients."""
    parameters = list(model.parameters())
    sizes = [p.numel() for p in parameters]
    gradient = torch.cat([p.grad.flatten() for p in parameters]) / world
    torch.distributed.all_reduce(gradient)
    for p, part in zip(parameters, gradient.split(sizes), strict=True):
        p.grad.copy_(part.view_as(p))


def kl_loss(
    model, tokenizer, stage: Stage, numeric: torch.Tensor, documents: list[Document]
) -> torch.Tensor:
    """KL(target || model), averaged over all tokens of all texts; a scalar, in nats."""
    headers, completions, tokens, q = collate(tokenizer, documents, stage.document_end)
    logits = trie.branch(model, trie.prefill(model, headers), completions)  # (R, L, V)
    if stage.margin or stage.number_margin:
        logits = with_margins(logits, tokens, q, numeric, stage.margin, stage.number_margin)
    log_p = logits.log_softmax(-1).gather(-1, tokens)  # (R, L, C)
    kl = (torch.xlogy(q, q) - q * log_p).sum()
    return kl / (completions != trie.PAD).sum()


def train_stage(model, tokenizer, name: str, steps: int, seed: int, rank: int, world: int) -> None:
    """Train the model in place. Each of `world` processes writes its share of the documents."""
    stage = STAGES[name]
    grids = parameter_grids()
    rng = np.random.default_rng([seed, rank, list(STAGES).index(name)])
    numeric = torch.tensor([trie.encode_one(tokenizer, mark)[0] for mark in "0123456789.-"])

    matrices, others = [], []
    for parameter_name, p in model.named_parameters():
        is_matrix = p.ndim == 2 and "embed" not in parameter_name
        (matrices if is_matrix else others).append(p)
    optimizers = [
        Muon(matrices, stage.muon_lr),
        torch.optim.AdamW(others, stage.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        return learning_rate(step, steps, stage.horizon)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]

    start = time.time()
    history = {kind: [] for kind in stage.shares}
    for step in range(steps):
        # Gradients add up over the kinds of documents, and are averaged over the processes.
        for kind, share in stage.shares.items():
            documents = []
            for place in range(step * share.documents + rank, (step + 1) * share.documents, world):
                documents.append(
                    write_document(tokenizer, grids, kind, place, share.draws, share.chats, rng)
                )
            loss = kl_loss(model, tokenizer, stage, numeric, documents)
            (share.weight * loss).backward()
            history[kind].append(loss.item())
        if world > 1:
            average_gradients(model, world)

        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

        if (step + 1) % 25 == 0 and rank == 0:
            means = [f"{kind} {np.mean(losses[-25:]):.4f}" for kind, losses in history.items()]
            seconds = time.time() - start
            print(
                f"{name} {step + 1}/{steps}: nats above the targets: {', '.join(means)}; "
                f"{seconds:.0f} s",
                flush=True,
            )


def save(model, tokenizer, out: Path) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", required=True, help="folder for the model and its tokenizer")
    add("--steps", type=int, nargs=3, default=[2600, 1800, 260], help="steps of each stage")
    add("--seed", type=int, default=0)
    add("--base", help="go on from OUT/knowledge or OUT/practice of an earlier run")
    args = parser.parse_args()
    out = Path(args.out)

    # torchrun sets these. On two cores, two processes with one thread each are 1.5 times as fast as
    # one process with two threads.
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    if args.base:
        model = Qwen3ForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    else:
        model = make_model(len(tokenizer))

    steps_of = dict(zip(STAGES, args.steps, strict=True))
    names = list(STAGES)
    if args.base:
        done = names.index(Path(args.base).name) + 1
        names = names[done:]
    for name in names:
        train_stage(model, tokenizer, name, steps_of[name], args.seed, rank, world)
        if rank == 0 and name != "collapse":
            save(model, tokenizer, out / name)
    if rank == 0:
        save(model.bfloat16(), tokenizer, out)  # half the size; a CPU loads it as float32


if __name__ == "__main__":
    main()
