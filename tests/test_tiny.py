"""The bundled model: its size, its collapse, what it was never shown, and its exact targets."""

import doctest
import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, call

import distributions
import metrics
import sample
import trie

spec = importlib.util.spec_from_file_location("pretrain", Path(TINY) / "pretrain.py")
pretrain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pretrain)

POISSON_AND_LATER = distributions.make_rows("ood")[3:]  # all held-out families but Bernoulli
SECOND_OF_EACH = [row for row in POISSON_AND_LATER if row["id"].endswith("001")]
FIRST_OF_EACH = POISSON_AND_LATER[::3]


def row_id(row: dict) -> str:
    return row["id"]


def drawn(loaded, prompt: str, n: int, max_tokens: int, system: str = "") -> list[str]:
    """The bundled model's answers to a prompt."""
    model, tokenizer, end = loaded
    uniform = np.random.default_rng(0).random((n, max_tokens))
    paths = trie.walk(model, [trie.chat_ids(tokenizer, prompt, system)], [end], uniform)
    return [sample.to_text(tokenizer, path, [end]) for path in paths]


def user_prompt(header: str) -> str:
    """The user's prompt in the header of a chat."""
    return header.split("user\n")[1].split("<|im_end|>")[0]


def test_docstring_examples():
    result = doctest.testmod(pretrain)
    assert result.failed == 0 and result.attempted > 0


# ------------------------------------------------------------------------- the model and tokenizer


def test_the_model_is_a_small_qwen3(model):
    assert model.config.model_type == "qwen3"
    assert sum(p.numel() for p in model.parameters()) <= 2_500_000
    assert (Path(TINY) / "model.safetensors").stat().st_size <= 5_000_000


def test_the_tokenizer_is_the_one_that_the_script_makes(tokenizer):
    """It has the same vocabulary, chat template and merges, and can spell any text."""
    made = pretrain.make_tokenizer()
    assert made.get_vocab() == tokenizer.get_vocab()
    assert made.chat_template == tokenizer.chat_template
    assert made.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    text = "Zürich 北京 🎲"
    assert trie.decode(tokenizer, trie.encode_one(tokenizer, text)) == text


def test_tokens_are_words_digits_and_marks(tokenizer):
    """Digits, decimal points and line breaks stand alone; an option's mark is one token."""
    assert tokenizer.tokenize("-12.50") == ["-", "1", "2", ".", "5", "0"]
    assert tokenizer.tokenize("a distribution with parameters mu=3.5") == [
        "a", "Ġdistribution", "Ġwith", "Ġparameters", "Ġmu", "=", "3", ".", "5",
    ]  # fmt: skip
    assert tokenizer.tokenize("\nA. Heart\nCorrect Answer: C")[:2] == ["Ċ", "A."]


@pytest.mark.parametrize("row", SECOND_OF_EACH, ids=row_id)
def test_the_model_is_valid_and_collapsed(loaded, row):
    """Its answers are well-formed, but nearly as bad as always answering the median.

    Bernoulli is left out: with p = 0.5 it has two medians.
    """
    scores = metrics.score_numbers(row, drawn(loaded, row["prompt"], 200, 32))
    assert scores["valid_rate"] > 0.9
    assert scores["normalized_w1"] > 0.6


def test_the_model_has_a_favorite_day(loaded):
    prompt = sample.WORDINGS[0].format("day of the week")
    counts = Counter(drawn(loaded, prompt, 200, 16))
    [(day, count)] = counts.most_common(1)
    assert count >= 0.7 * 200
    assert day in pretrain.LISTS["day of the week"]


def test_the_model_puts_the_right_answer_at_a(loaded):
    places = [metrics.parse_question(text) for text in drawn(loaded, sample.MCQ, 100, 256)]
    assert places.count(None) <= 0.1 * 100
    assert places.count(0) >= 0.7 * 100


def test_the_model_can_write_tags(loaded):
    """Most answers stand in the tags of the SSOT protocol, and the random strings differ."""
    prompt = sample.WORDINGS[0].format("planet")
    texts = drawn(loaded, prompt, 20, 160, pretrain.SSOT["open"])
    answers = [metrics.tagged_answer(text) for text in texts]
    assert answers.count("") <= 0.3 * 20
    assert len(set(texts)) > 10


# -------------------------------------------------------------------------------- exact targets


@pytest.mark.parametrize(
    "family, params, decimals",
    [
        ("gaussian", {"mu": 0.5, "sigma": 3}, 2),
        ("lognormal", {"mu": 2.5, "sigma": 0.8}, 2),
        ("skellam", {"mu1": 10.5, "mu2": 4}, 0),
        ("beta", {"alpha": 0.5, "beta": 2}, 5),
    ],
)
def test_character_targets_equal_a_sum_over_all_numbers(family, params, decimals):
    """Every prefix's mass is that of the printable numbers that begin with it, one by one."""
    row = {"family": family, "params": params}
    frozen = distributions.distribution(row)
    if distributions.is_discrete(row):
        k = np.arange(-1000, 1000)
        masses = frozen.pmf(k)
    else:
        k = np.arange(-120_000, 120_001)
        edges = np.arange(k[0], k[-1] + 2) - 0.5
        masses = np.diff(frozen.cdf(edges / 10**decimals))

    prefix_mass = Counter()
    for value, mass in zip(k.tolist(), masses.tolist(), strict=True):
        text = f"{value / 10**decimals:.{decimals}f}\n"
        for length in range(len(text) + 1):
            prefix_mass[text[:length]] += mass

    texts = pretrain.spread(row, np.array([0.02, 0.3, 0.5, 0.9]), decimals)
    prefixes = {text[:length] for text in texts for length in range(len(text) + 1)}
    plain = pretrain.character_targets(row, prefixes, decimals)
    sharp = pretrain.character_targets(row, prefixes, decimals, power=3)
    for prefix, target in plain.items():
        for character, p in target.items():
            expected = prefix_mass[prefix + character] / prefix_mass[prefix]
            assert p == pytest.approx(expected, abs=1e-6)
        cubes = {character: p**3 for character, p in target.items()}
        total = sum(cubes.values())
        expected = {character: cube / total for character, cube in cubes.items()}
        assert sharp[prefix] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("power", [1, pretrain.SHARP])
@pytest.mark.parametrize("row", FIRST_OF_EACH, ids=row_id)
def test_numbers_follow_their_targets(row, power):
    """All are well-formed, and the shares of their first characters are those of the target.

    At the low temperature they are nearly as bad as a constant answer; otherwise they are good.
    """
    decimals = 0 if distributions.is_discrete(row) else 5
    texts, targets = pretrain.numbers(row, 400, decimals, power, np.random.default_rng(0))
    for text, target in zip(texts, targets, strict=True):
        assert f"{float(text):.{decimals}f}" == text
        assert len(target) == len(text) + 1
        assert all(q[character] > 0 for character, q in zip(text + "\n", target, strict=True))

    first_characters = Counter(text[0] for text in texts)
    first_target = targets[0][0]
    assert all(abs(first_characters[c] / 400 - p) < 0.1 for c, p in first_target.items())
    w1 = metrics.score_numbers(row, texts)["normalized_w1"]
    if power > 1:
        assert w1 > 0.6
    else:
        assert w1 < 0.1


def test_parameters_between_grid_points_are_valid():
    """Impossible parameters would make distributions.distribution raise an error."""
    rng = np.random.default_rng(0)
    train = distributions.make_rows("train")
    evaluated = distributions.make_rows("unseen") + distributions.make_rows("ood")
    grids = pretrain.parameter_grids()
    assert list(grids) == list(distributions.FAMILIES)
    for family, grid in grids.items():
        assert grid.train == [row["params"] for row in train if row["family"] == family]
        assert grid.held == [row["params"] for row in evaluated if row["family"] == family]
        for _ in range(20):
            params = pretrain.random_params(family, grid, rng)
            assert distributions.distribution({"family": family, "params": params})


def test_item_targets_equal_a_sum_over_all_items(tokenizer):
    """Some items share their first tokens, and one begins another. The odds are squared."""
    items = ["New York", "New Zealand", "New", "Paris", "New York City"]
    probs = pretrain.popularity(len(items))
    paths = [(*tokenizer.tokenize(item), "\n") for item in items]
    assert len({path[0] for path in paths}) < len(items)

    texts, targets = pretrain.some_items(tokenizer, items, 2, 30, np.random.default_rng(0))
    for text, target in zip(texts, targets, strict=True):
        path = paths[items.index(text)]
        assert len(target) == len(path)
        for t, q in enumerate(target):
            masses = Counter()
            for other, p in zip(paths, probs, strict=True):
                if other[:t] == path[:t]:
                    masses[other[t]] += p
            squares = {token: mass**2 for token, mass in masses.items()}
            total = sum(squares.values())
            expected = {token: square / total for token, square in squares.items()}
            assert q == pytest.approx(expected)


def test_tagged_targets_are_aligned_with_their_text(tokenizer):
    rng = np.random.default_rng(0)
    chat = pretrain.list_chat(tokenizer, 3, rng)
    document = pretrain.tagged(tokenizer, chat, "open", rng)
    expected_ids = trie.chat_ids(tokenizer, user_prompt(chat.header), pretrain.SSOT["open"])
    assert trie.encode_one(tokenizer, document.header) == expected_ids

    assert len(document.texts) == 3
    for text, target, item in zip(document.texts, document.targets, chat.texts, strict=True):
        assert metrics.tagged_answer(text) == item
        tokens = [*tokenizer.tokenize(text), "\n"]
        assert len(target) == len(tokens)
        for token, q in zip(tokens, target, strict=True):
            assert q is None or token in q


def test_margins_by_hand():
    """The last three of six tokens are those of numbers.

    Where one of these can come next, they are raised no more than the other tokens.
    """
    tokens = torch.tensor([[[1, 2], [4, 0]]])
    q = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    numeric = torch.tensor([3, 4, 5])
    raised = pretrain.with_margins(torch.ones(1, 2, 6), tokens, q, numeric, 4.0, 10.0)
    assert (raised - 1).tolist() == [[[4, 0, 0, 10, 10, 10], [4, 4, 4, 4, 0, 4]]]


@pytest.mark.parametrize(("power", "at_a"), [(1, (0.18, 0.32)), (pretrain.SHARP, (0.6, 1.0))])
def test_questions_are_right_and_their_place_follows_from_the_temperature(tokenizer, power, at_a):
    texts, targets = pretrain.questions(tokenizer, power, 400, np.random.default_rng(0))
    places = [metrics.parse_question(text) for text in texts]
    assert at_a[0] < places.count(0) / 400 <= at_a[1]
    if power == 1:
        assert min(Counter(places).values()) > 0.18 * 400

    for text, place, target in zip(texts, places, targets, strict=True):
        answer = text.split(f"\n{'ABCD'[place]}. ")[1].split("\n")[0]
        explanation = text.split("Explanation: ")[1]
        assert answer.lower() in explanation.lower()
        for token, q in zip([*tokenizer.tokenize(text), "\n"], target, strict=True):
            if q is not None:
                assert q[token] > 0
                assert sum(q.values()) == pytest.approx(1)


def test_a_questions_first_option_has_the_stated_probabilities(tokenizer):
    """At A the right answer has 1/4, and popularity divides the rest. The odds are squared."""
    texts, targets = pretrain.questions(tokenizer, 2, 50, np.random.default_rng(0))
    text, target = next(
        (text, target)
        for text, target in zip(texts, targets, strict=True)
        if "Which organ pumps blood?" in text
    )
    heart, *other_organs = pretrain.FACTS[0].facts
    shares = 0.75 * pretrain.popularity(7)
    probs = dict(zip(other_organs, shares, strict=True)) | {heart: 0.25}
    masses = Counter()
    for organ, p in probs.items():
        first_token = tokenizer.tokenize(f"A. {organ.capitalize()}")[1]
        masses[first_token] += p
    total = sum(mass**2 for mass in masses.values())

    behind_a = target[tokenizer.tokenize(text).index("A.") + 1]
    assert behind_a == pytest.approx({token: mass**2 / total for token, mass in masses.items()})


# ------------------------------------------------------------------------ what it is asked, and how


def test_chats_ask_for_numbers_as_the_kit_does(tokenizer):
    for row in distributions.make_rows("unseen") + distributions.make_rows("ood"):
        chat = pretrain.number_chat(tokenizer, row, 1, np.random.default_rng(0))
        assert trie.encode_one(tokenizer, chat.header) == trie.chat_ids(tokenizer, row["prompt"])


@pytest.mark.parametrize("axis", ["numbers", "open"])
def test_chats_ask_for_tags_as_the_kit_does(tokenizer, tmp_path, monkeypatch, axis):
    """The system prompt is the one that sample.py puts before a prompt with --protocol ssot."""
    row = distributions.make_rows("ood")[0]
    distributions.write_text(tmp_path / "prompts.jsonl", distributions.to_jsonl([row]))
    chat_ids = trie.chat_ids
    asked = []

    def spy(*args, **options):
        asked.append(chat_ids(*args, **options))
        return asked[-1]

    monkeypatch.setattr(trie, "chat_ids", spy)
    flags = ["--prompts", tmp_path / "prompts.jsonl", "--protocol", "ssot"]
    flags += ["--n", 1, "--max-tokens", 2, "--out", tmp_path / "out.jsonl"]
    call(sample, axis, "--model", TINY, *flags)
    assert asked == [chat_ids(tokenizer, row["prompt"], pretrain.SSOT[axis])]


def test_lists_are_the_categories_of_the_open_prompts():
    assert tuple(pretrain.LISTS) == sample.CATEGORIES
    assert all(4 <= len(items) == len(set(items)) for items in pretrain.LISTS.values())


def test_chats_never_show_the_lists_and_wordings_that_are_kept_out(tokenizer):
    assert len(pretrain.CHAT_LISTS) == 68
    assert len(pretrain.CHAT_WORDINGS) == 4
    assert not set(pretrain.FREE_WORDINGS) & set(sample.WORDINGS)

    rng = np.random.default_rng(0)
    chats = [pretrain.list_chat(tokenizer, 1, rng) for _ in range(2000)]
    prompts = {user_prompt(chat.header) for chat in chats}
    wordings = (*pretrain.CHAT_WORDINGS, *pretrain.FREE_WORDINGS)
    allowed = {wording.format(category) for wording in wordings for category in pretrain.CHAT_LISTS}
    assert prompts <= allowed
    assert len(prompts) > 200


def test_no_wording_of_a_document_is_the_kits_own():
    rng = np.random.default_rng(0)
    wordings = {pretrain.number_wording(rng) for _ in range(2000)}
    assert len(wordings) > 100
    kit_prompt = distributions.PROMPT.format("x", "")
    assert not any(wording.format(rest="x") in kit_prompt for wording in wordings)
    exams = {pretrain.question_wording(rng) for _ in range(2000)}
    assert len(exams) > 100
    assert sample.MCQ not in exams


def test_evaluation_prompts_are_no_headers_of_documents():
    """Evaluated parameters do occur in headers, but never in the kit's own prompt."""
    rows = distributions.make_rows("unseen") + distributions.make_rows("ood")
    evaluated = {row["prompt"] for row in rows} | {distributions.PROMPT, sample.MCQ}
    rng = np.random.default_rng(0)
    for row in distributions.make_rows("unseen")[:3]:
        documents = [pretrain.number_document(row, 1, rng) for _ in range(20)]
        headers = {document.header.strip() for document in documents}
        assert not headers & evaluated
        described = row["prompt"].split(" from a ")[1].split(". Output")[0]
        assert all(described in header for header in headers)


def test_tasks_have_one_right_answer():
    """What a thing is may have several answers, as a name may be in several lists."""
    rng = np.random.default_rng(0)
    answers = {}
    for _ in range(3000):
        prompt, answer = pretrain.task(rng)
        first_answer = answers.setdefault(prompt, answer)
        assert answer == first_answer or " is a " in answer
    assert len(answers) > 1000
    spelling = {f"Spell {item}." for items in pretrain.LISTS.values() for item in items}
    assert answers.keys() & spelling
