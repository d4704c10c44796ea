"""The embedded model: its size, its kind, its collapse, what was kept from it, and the exact targets it was trained on."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

import distributions as d
import metrics
import sample
import trie

spec = importlib.util.spec_from_file_location("pretrain", Path(TINY) / "pretrain.py")
pretrain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pretrain)


def drawn(loaded, prompt: str, n: int, max_tokens: int, system: str = "") -> list[str]:
    model, tokenizer, end = loaded
    uniform = np.random.default_rng(0).random((n, max_tokens))
    paths = trie.walk(model, [trie.chat_ids(tokenizer, prompt, system)], [end], uniform)
    return [sample.written(tokenizer, path, [end]) for path in paths]


def test_size_and_kind(model, tokenizer):
    assert (
        model.config.model_type == "qwen3"
        and sum(p.numel() for p in model.parameters()) <= 2_500_000
    )
    assert (Path(TINY) / "model.safetensors").stat().st_size <= 5_000_000
    made = pretrain.make_tokenizer()
    assert (
        made.get_vocab() == tokenizer.get_vocab() and made.chat_template == tokenizer.chat_template
    )
    assert trie.decode(tokenizer, trie.encode_one(tokenizer, "Zürich 北京 🎲")) == "Zürich 北京 🎲"
    assert made.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()  # its merges too


def test_tokens_are_words_digits_and_marks(tokenizer):
    """A digit, a decimal point and a line break stand alone; the mark of an option is no decimal point."""
    assert tokenizer.tokenize("-12.50") == ["-", "1", "2", ".", "5", "0"]
    assert tokenizer.tokenize("a distribution with parameters mu=3.5") == [
        "a", "Ġdistribution", "Ġwith", "Ġparameters", "Ġmu", "=", "3", ".", "5",
    ]  # fmt: skip
    assert tokenizer.tokenize("\nA. Heart\nCorrect Answer: C")[:2] == ["Ċ", "A."]


@pytest.mark.parametrize(
    "row", [r for r in d.make_rows("ood")[3:] if r["id"][-3:] == "001"], ids=lambda row: row["id"]
)
def test_the_base_is_valid_and_collapsed(loaded, row):
    """An answer in correct form, but nearly as bad as always answering the median. (Not Bernoulli: the one with
    p = .5 has two medians.)"""
    scores = metrics.score_numbers(row, drawn(loaded, row["prompt"], 200, 32))
    assert scores["valid_rate"] > 0.9 and scores["normalized_w1"] > 0.6


@pytest.mark.parametrize(
    "family, params, decimals",
    [
        ("gaussian", {"mu": 0.5, "sigma": 3}, 2),
        ("lognormal", {"mu": 2.5, "sigma": 0.8}, 2),
        ("skellam", {"mu1": 10.5, "mu2": 4}, 0),
        ("beta", {"alpha": 0.5, "beta": 2}, 5),
    ],
)
def test_character_targets_equal_a_brute_force(family, params, decimals):
    """The mass of every prefix from all printable numbers, one by one."""
    row = {"family": family, "params": params}
    dist, k = d.distribution(row), np.arange(-120_000, 120_001)
    if d.is_discrete(row):
        k, mass = k[119_000:121_000], dist.pmf(k[119_000:121_000])
    else:
        mass = np.diff(dist.cdf((np.arange(k[0], k[-1] + 2) - 0.5) / 10**decimals))
    prefixes = Counter()
    for value, p in zip(k.tolist(), mass.tolist(), strict=True):
        text = f"{value / 10**decimals:.{decimals}f}" + "\n"
        for i in range(len(text) + 1):
            prefixes[text[:i]] += p
    texts = pretrain.spread(row, np.array([0.02, 0.3, 0.5, 0.9]), decimals)
    begun = {text[:i] for text in texts for i in range(len(text) + 1)}
    sharp = pretrain.character_targets(row, begun, decimals, power=3)
    for prefix, target in pretrain.character_targets(row, begun, decimals).items():
        for char, p in target.items():
            assert p == pytest.approx(prefixes[prefix + char] / prefixes[prefix], abs=1e-6)
        cubes = {char: p**3 for char, p in target.items()}
        assert sharp[prefix] == pytest.approx(
            {char: p / sum(cubes.values()) for char, p in cubes.items()}, abs=1e-6
        )


@pytest.mark.parametrize("power", [1, pretrain.SHARP])
@pytest.mark.parametrize("row", d.make_rows("ood")[3::3], ids=lambda row: row["id"])
def test_numbers_follow_their_targets(row, power):
    """All in form; the first character is drawn as its target says; sharp, they are nearly as bad as one answer."""
    decimals = 0 if d.is_discrete(row) else 5
    texts, targets = pretrain.numbers(row, 400, decimals, power, np.random.default_rng(0))
    for text, positions in zip(texts, targets, strict=True):
        assert f"{float(text):.{decimals}f}" == text and len(positions) == len(text) + 1
        assert all(q[char] > 0 for char, q in zip(text + "\n", positions, strict=True))
    first = Counter(text[0] for text in texts)
    assert all(abs(first[char] / 400 - p) < 0.1 for char, p in targets[0][0].items())
    w1 = metrics.score_numbers(row, texts)["normalized_w1"]
    assert w1 > 0.6 if power > 1 else w1 < 0.1


def test_parameters_between_grid_rows_are_possible():
    rows = d.make_rows("train") + d.make_rows("unseen") + d.make_rows("ood")
    rng = np.random.default_rng(0)
    for family in d.FAMILIES:
        grid = [
            [r["params"] for r in rows if r["family"] == family and (r["split"] != "train") == held]
            for held in (0, 1)
        ]
        for _ in range(20):
            d.distribution(
                {"family": family, "params": pretrain.random_params(family, {family: grid}, rng)}
            )


def test_the_prompts_of_its_chat_are_those_of_the_kit(tokenizer):
    for row in d.make_rows("unseen") + d.make_rows("ood"):
        header, _, _ = pretrain.number_chat(tokenizer, row, 1, np.random.default_rng(0))
        assert trie.encode_one(tokenizer, header) == trie.chat_ids(tokenizer, row["prompt"])


def test_the_base_has_a_favourite_day(loaded):
    ((day, count),) = Counter(
        drawn(loaded, sample.WORDINGS[0].format("day of the week"), 200, 16)
    ).most_common(1)
    assert count >= 0.7 * 200 and day in pretrain.LISTS["day of the week"]


def test_the_base_puts_the_right_answer_at_a(loaded):
    places = [metrics.parse_question(text) for text in drawn(loaded, sample.MCQ, 100, 256)]
    assert places.count(None) <= 0.1 * 100 and places.count(0) >= 0.7 * 100


def test_the_base_can_write_tags(loaded):
    texts = drawn(loaded, sample.WORDINGS[0].format("planet"), 20, 160, pretrain.SSOT["open"])
    answers = [metrics.tagged_answer(text) for text in texts]
    assert answers.count("") <= 0.3 * 20 and len(set(texts)) > 10  # different strings


def test_lists_are_the_categories_of_the_open_prompts():
    assert tuple(pretrain.LISTS) == sample.CATEGORIES
    assert all(4 <= len(items) == len(set(items)) for items in pretrain.LISTS.values())


def test_chat_never_shows_the_lists_and_wordings_that_are_kept_out(tokenizer):
    rng = np.random.default_rng(0)
    chats = [pretrain.list_chat(tokenizer, 1, rng)[0] for _ in range(2000)]
    prompts = {chat.split("user\n")[1].split("<|im_end|>")[0] for chat in chats}
    allowed = {
        w.format(c)
        for w in (*pretrain.CHAT_WORDINGS, *pretrain.FREE_WORDINGS)
        for c in pretrain.CHAT_LISTS
    }
    assert not set(pretrain.FREE_WORDINGS) & set(sample.WORDINGS)
    assert (
        prompts <= allowed and len(pretrain.CHAT_LISTS) == 68 and len(pretrain.CHAT_WORDINGS) == 4
    )
    assert len(prompts) > 200


def test_item_targets_equal_a_brute_force(tokenizer):
    """Of items that share their first tokens, and one that is the beginning of another; the odds of each token squared."""
    items = ["New York", "New Zealand", "New", "Paris", "New York City"]
    probs = pretrain.popularity(len(items))
    paths = [(*tokenizer.tokenize(item), "\n") for item in items]
    assert len({path[0] for path in paths}) < len(items)
    for text, targets in zip(
        *pretrain.some_items(tokenizer, items, 2, 30, np.random.default_rng(0)), strict=True
    ):
        own = paths[items.index(text)]
        assert len(targets) == len(own)
        for t, target in enumerate(targets):
            begin = [i for i, path in enumerate(paths) if path[:t] == own[:t]]
            expected = Counter()
            for i in begin:
                expected[paths[i][t]] += probs[i]
            squares = {token: p**2 for token, p in expected.items()}
            assert target == pytest.approx(
                {token: p / sum(squares.values()) for token, p in squares.items()}
            )


def test_tagged_targets_are_aligned_with_their_text(tokenizer):
    rng = np.random.default_rng(0)
    inner = pretrain.list_chat(tokenizer, 3, rng)
    header, texts, targets = pretrain.tagged(tokenizer, inner, "open", 3, rng)
    asked, system = inner[0].split("user\n")[1].split("<|im_end|>")[0], pretrain.SSOT["open"]
    assert trie.encode_one(tokenizer, header) == trie.chat_ids(tokenizer, asked, system)
    for text, positions, item in zip(texts, targets, inner[1], strict=True):
        assert metrics.tagged_answer(text) == item
        tokens = [*tokenizer.tokenize(text), "\n"]
        assert len(positions) == len(tokens)
        assert all(
            target is None or token in target
            for token, target in zip(tokens, positions, strict=True)
        )


def test_evaluation_prompts_are_no_headers_of_documents(tokenizer):
    """Numbers are announced in many ways, but as the kit asks for them only where the kit trains; exams in any but its own."""
    rng = np.random.default_rng(0)
    asked = {row["prompt"] for split in ("unseen", "ood") for row in d.make_rows(split)} | {
        d.PROMPT,
        sample.MCQ,
    }
    ways = {pretrain.number_wording(rng) for _ in range(2000)}
    assert len(ways) > 100 and not any(
        way.format(rest="x") in d.PROMPT.format("x", "") for way in ways
    )
    exams = {pretrain.question_wording(rng) for _ in range(2000)}
    assert len(exams) > 100 and sample.MCQ not in exams
    for row in d.make_rows("unseen")[:3]:
        headers = {pretrain.number_document(tokenizer, row, 1, rng)[0].strip() for _ in range(20)}
        assert not headers & asked and all(
            row["prompt"].split(" from a ")[1].split(". Output")[0] in h for h in headers
        )


def test_tasks_have_one_right_answer():
    rng = np.random.default_rng(0)
    answers = {}
    for prompt, answer in (pretrain.task(rng) for _ in range(3000)):
        assert (
            answers.setdefault(prompt, answer) == answer or " is a " in answer
        )  # a name may be in several lists
    assert len(answers) > 1000 and answers.keys() & {
        f"Spell {item}." for items in pretrain.LISTS.values() for item in items
    }


def test_margins_by_hand():
    """Of six tokens the last three are of numbers. Where one of these can come next, they are tokens like the others."""
    tokens, q = torch.tensor([[[1, 2], [4, 0]]]), torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    raised = pretrain.with_margins(
        torch.ones(1, 2, 6), tokens, q, torch.tensor([3, 4, 5]), 4.0, 10.0
    )
    assert (raised - 1).tolist() == [[[4, 0, 0, 10, 10, 10], [4, 4, 4, 4, 0, 4]]]


@pytest.mark.parametrize(("power", "at_a"), [(1, (0.18, 0.32)), (pretrain.SHARP, (0.6, 1.0))])
def test_questions_are_right_and_the_place_follows_from_the_temperature(tokenizer, power, at_a):
    texts, dense = pretrain.questions(tokenizer, power, 400, np.random.default_rng(0))
    places = [metrics.parse_question(text) for text in texts]
    assert at_a[0] < places.count(0) / 400 <= at_a[1] and (
        power > 1 or min(Counter(places).values()) > 0.18 * 400
    )
    for text, place, targets in zip(texts, places, dense, strict=True):
        answer = text.split(f"\n{'ABCD'[place]}. ")[1].split("\n")[0]
        assert answer.lower() in text.split("Explanation: ")[1].lower()
        for token, target in zip([*tokenizer.tokenize(text), "\n"], targets, strict=True):
            assert target is None or (
                target[token] > 0 and sum(target.values()) == pytest.approx(1)
            )


def test_a_questions_first_option_has_the_probabilities_told(tokenizer):
    """At A, the right answer has 1/4, and each wrong one its share of popularity of the rest; then the odds squared."""
    texts, dense = pretrain.questions(tokenizer, 2, 50, np.random.default_rng(0))
    text, targets = next(
        (t, d) for t, d in zip(texts, dense, strict=True) if "Which organ pumps blood?" in t
    )
    organs = list(next(iter(pretrain.FACTS.values())))
    probs = dict(zip(organs[1:], 0.75 * pretrain.popularity(7), strict=True)) | {organs[0]: 0.25}
    first = Counter()
    for organ, p in probs.items():
        first[tokenizer.tokenize(f"A. {organ.capitalize()}")[1]] += p
    total = sum(p**2 for p in first.values())
    at_a = targets[tokenizer.tokenize(text).index("A.") + 1]
    assert at_a == pytest.approx({token: p**2 / total for token, p in first.items()})
