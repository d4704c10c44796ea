"""The sampler, the support size and the exact logit KL against plain forward passes; the prompts.

All of them on the bundled model. A plain forward pass reads one whole row, without a cache.
"""

import json
import shutil
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, assert_mentions, call, complaint
from scipy import stats
from transformers import AutoModelForCausalLM

import distributions
import sample
import trie

ROWS = {row["id"]: row for split in ("unseen", "ood") for row in distributions.make_rows(split)}
GAUSSIAN = ROWS["unseen-gaussian-000"]
POISSON = ROWS["ood-poisson-001"]
BROAD = ROWS["unseen-negative_binomial-000"]  # the base answers it in many ways


@pytest.fixture(scope="module")
def prompt_ids(tokenizer) -> list[list[int]]:
    """Three prompts of different lengths, the last of them not about a number."""
    texts = (GAUSSIAN["prompt"], BROAD["prompt"], sample.MCQ)
    prompts = [trie.chat_ids(tokenizer, text) for text in texts]
    assert len({len(prompt) for prompt in prompts}) == 3
    return prompts


@pytest.fixture(scope="module")
def gaussian_context(model, prompt_ids) -> trie.Context:
    with torch.inference_mode():
        return trie.prefill(model, prompt_ids[:1])


def random_numbers(n, max_tokens, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, max_tokens))


def plain_probs(model, ids: list[int]) -> np.ndarray:
    """The next token's distribution (V,) in float64, by a plain forward pass."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()


def plain_draws(model, prompt: list[int], end: int, numbers: np.ndarray) -> list[list[int]]:
    """Ordinary sampling: one token at a time, by inverse CDF, from a plain forward pass."""
    cdfs = {}  # of the next token, after each path
    paths = []
    for numbers_of_draw in numbers:
        path = []
        for number in numbers_of_draw:
            if tuple(path) not in cdfs:
                cdfs[tuple(path)] = plain_probs(model, prompt + path).cumsum()
            cdf = cdfs[tuple(path)]
            path.append(int(np.searchsorted(cdf, number * cdf[-1], "right")))
            if path[-1] == end:
                break
        paths.append(path)
    return paths


def rows_of_each_pass(model, work) -> list[int]:
    """How many rows the model reads in each forward pass while work() runs."""
    rows = []

    def count(module, args, kwargs):
        rows.append(len(kwargs["input_ids"]))

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    work()
    hook.remove()
    return rows


# ------------------------------------------------------------------------------------- the sampler


@pytest.mark.parametrize("which", range(3))
def test_the_walk_draws_what_plain_sampling_draws(model, prompt_ids, end, which):
    """The same random numbers give the same answers in the same order, ended or cut."""
    numbers = random_numbers(48, 30, seed=which)
    paths = trie.walk(model, [prompt_ids[which]], [end], numbers)
    assert paths == plain_draws(model, prompt_ids[which], end, numbers)
    assert len({tuple(path) for path in paths}) > 3
    for path in paths:
        assert path[-1] == end or len(path) == 30


def test_the_walk_depends_neither_on_its_budget_nor_on_its_company(model, prompt_ids, end):
    numbers = random_numbers(3 * 40, 8)
    together = trie.walk(model, prompt_ids, [end], numbers)
    for rows in (1, 7, 40, 64, 120):
        assert trie.walk(model, prompt_ids, [end], numbers, rows) == together

    alone = []
    for i, prompt in enumerate(prompt_ids):
        alone += trie.walk(model, [prompt], [end], numbers[i * 40 : (i + 1) * 40])
    assert alone == together
    assert {path[-1] == end for path in together} == {True, False}
    other_numbers = random_numbers(3 * 40, 8, seed=1)
    assert trie.walk(model, prompt_ids, [end], other_numbers) != together


def test_each_distinct_prefix_is_read_once(model, prompt_ids, end):
    numbers = random_numbers(3 * 60, 8)
    paths = trie.walk(model, prompt_ids, [end], numbers)
    passes = rows_of_each_pass(model, lambda: trie.walk(model, prompt_ids, [end], numbers))
    *_, prompt_rows, step_1, step_2, step_3, step_4, step_5, step_6, step_7 = passes
    assert prompt_rows == 3
    for t, rows in enumerate((step_1, step_2, step_3, step_4, step_5, step_6, step_7), 1):
        unfinished = {(i // 60, *path[:t]) for i, path in enumerate(paths) if len(path) > t}
        assert rows == len(unfinished)
    assert max(passes) < 180


def test_the_walk_never_has_more_rows_than_its_budget(model, prompt_ids, end):
    numbers = random_numbers(3 * 60, 8)
    passes = rows_of_each_pass(
        model, lambda: trie.walk(model, prompt_ids, [end], numbers, at_once=16)
    )
    assert max(passes) <= 16


def test_the_walk_stops_at_every_end_and_at_nothing_else(model, tokenizer, prompt_ids, end):
    numbers = random_numbers(3 * 60, 12)
    paths = trie.walk(model, prompt_ids, [end], numbers)
    five, dot = trie.encode_one(tokenizer, "5.")
    assert any(five in path for path in paths)
    for path in paths:
        assert end not in path[:-1]

    cut = []
    for path in paths:
        places = [t for t, token in enumerate(path) if token in (five, dot)]
        cut.append(path[: places[0] + 1] if places else path)
    assert trie.walk(model, prompt_ids, [end, five, dot], numbers) == cut


def chi_square(observed: Counter, expected: dict, n: int) -> float:
    """The p-value of a test in which outcomes that expect fewer than five draws are one cell."""
    kept = [key for key, p in expected.items() if p * n >= 5]
    seen = [observed[key] for key in kept]
    wanted = [expected[key] * n for key in kept]
    rest = 1 - sum(expected[key] for key in kept)
    if rest * n >= 1:
        seen.append(n - sum(seen))
        wanted.append(rest * n)
    if len(seen) == 1:
        return 1.0
    return stats.chisquare(seen, wanted, sum_check=False).pvalue


def test_first_tokens_follow_the_full_softmax(model, prompt_ids, end):
    probs = plain_probs(model, prompt_ids[0])
    numbers = random_numbers(20_000, 1)
    paths = trie.walk(model, prompt_ids[:1], [end], numbers, at_once=4096)
    counts = Counter(token for (token,) in paths)
    assert counts.total() == 20_000
    assert chi_square(counts, dict(enumerate(probs)), 20_000) > 1e-3


def test_answers_follow_the_exact_probabilities(model, prompt_ids, end):
    """The probabilities of paths of up to three tokens, by the chain rule over plain passes."""
    exact = {}
    unfinished = {(): 1.0}
    for depth in range(3):
        longer = {}
        for path, mass in unfinished.items():
            for token, p in enumerate(plain_probs(model, prompt_ids[0] + list(path))):
                if mass * p <= 1e-6:
                    continue
                if token == end or depth == 2:
                    exact[(*path, token)] = mass * p
                else:
                    longer[(*path, token)] = mass * p
        most_probable = sorted(longer.items(), key=lambda item: -item[1])[:60]
        unfinished = dict(most_probable)

    numbers = random_numbers(20_000, 3, seed=1)
    paths = trie.walk(model, prompt_ids[:1], [end], numbers, at_once=4096)
    counts = Counter(tuple(path) for path in paths)
    assert counts.total() == 20_000
    assert len(counts) > 10
    assert chi_square(counts, exact, 20_000) > 1e-3


def test_choose_uses_each_draws_row_and_number():
    logits = torch.tensor([[0.25, 0.25, 0.5], [1.0, 1e-30, 1e-30]]).log()
    row_of = torch.tensor([0, 0, 0, 1])
    numbers = torch.tensor([0.1, 0.3, 0.99, 0.99], dtype=torch.float64)
    assert trie.choose(logits, row_of, numbers).tolist() == [0, 1, 2, 0]
    mixed = torch.tensor([2, 0, 3, 1])  # the same draws in another order
    assert trie.choose(logits, row_of[mixed], numbers[mixed]).tolist() == [2, 0, 0, 1]


def test_choose_never_takes_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    row_of = torch.zeros(2, dtype=torch.long)
    numbers = torch.tensor([0.0, np.nextafter(1, 0)], dtype=torch.float64)
    assert trie.choose(logits, row_of, numbers).tolist() == [1, 1]


HOSTILE = {
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 1,
    "top_p": 0.1,
    "max_new_tokens": 1,
    "min_new_tokens": 3,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(3, 100)),
}


def test_of_the_generation_config_only_the_end_tokens_count(model, tokenizer, end, tmp_path):
    """Where it says that "4" and "." are ends, the answers are the usual ones, cut there."""
    more = trie.encode_one(tokenizer, "4.")
    hostile = shutil.copytree(TINY, tmp_path / "hostile")
    (hostile / "generation_config.json").write_text(json.dumps(HOSTILE | {"eos_token_id": more}))
    assert AutoModelForCausalLM.from_pretrained(hostile).generation_config.top_k == 1
    other_model, _, other_end = trie.load(str(hostile))
    assert other_end == end
    assert set(other_model.generation_config.eos_token_id) == {end, *more}

    prompts = tmp_path / "prompts.jsonl"
    distributions.write_text(prompts, distributions.to_jsonl([GAUSSIAN, POISSON]))
    flags = ["--prompts", prompts, "--n", 60, "--max-tokens", 5]
    plain_file, hostile_file = tmp_path / "plain.jsonl", tmp_path / "hostile.jsonl"
    call(sample, "numbers", "--model", TINY, *flags, "--out", plain_file)
    call(sample, "numbers", "--model", hostile, *flags, "--out", hostile_file)
    plain_rows = distributions.read_rows([plain_file])
    hostile_rows = distributions.read_rows([hostile_file])
    for plain, cut in zip(plain_rows, hostile_rows, strict=True):
        assert cut["draws"] == [draw.replace("4", ".").split(".")[0] for draw in plain["draws"]]
        assert cut["draws"] != plain["draws"]
        assert cut["logit_kl"] == plain["logit_kl"]
        assert cut["logit_kl_form"] == plain["logit_kl_form"]


@pytest.mark.parametrize("stated", ["one", "none"])
def test_a_checkpoint_may_have_one_end_token_or_none(tokenizer, end, tmp_path, stated):
    (four,) = trie.encode_one(tokenizer, "4")
    folder = shutil.copytree(TINY, tmp_path / "model")
    config = {"eos_token_id": four if stated == "one" else None}
    (folder / "generation_config.json").write_text(json.dumps(config))
    model, _, _ = trie.load(str(folder))
    expected = {end, four} if stated == "one" else {end}
    assert set(model.generation_config.eos_token_id) == expected


@pytest.mark.parametrize("rows", [3, 512])
def test_draws_are_those_of_the_walk(model, tokenizer, prompt_ids, end, tmp_path, rows):
    """They come from each prompt's own stream, whatever the budget; a cut answer ends in "…"."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    distributions.write_text(prompts, distributions.to_jsonl([GAUSSIAN, BROAD]))
    flags = ["--prompts", prompts, "--n", 30, "--max-tokens", 4, "--rows", rows, "--seed", 5]
    call(sample, "numbers", "--model", TINY, *flags, "--out", out)
    results = distributions.read_rows([out])
    cut = [draw for row in results for draw in row["draws"] if draw.endswith("…")]
    assert 0 < len(cut) < 60

    for row, prompt in zip(results, prompt_ids[:2], strict=True):
        numbers = distributions.prompt_rng(5, row["id"]).random((30, 4))
        paths = trie.walk(model, [prompt], [end], numbers)
        texts = []
        for path in paths:
            if path[-1] == end:
                texts.append(tokenizer.decode(path[:-1]))
            else:
                texts.append(tokenizer.decode(path) + "…")
        assert row["draws"] == texts
        assert row["tokens"] == sum(len(path) for path in paths)
        assert row["seed"] == 5


# ----------------------------------------------------------------------------- exact probabilities


@pytest.mark.parametrize(
    "probs, mass, size",
    [
        ([0.5, 0.3, 0.2], 0.9, 3),
        ([0.5, 0.4, 0.1], 0.9, 2),
        ([0.1, 0.4, 0.5], 0.9, 2),
        ([0.95, 0.05], 0.9, 1),
        ([0.25] * 4, 0.9, 4),
        ([0.1] * 10, 0.9, 9),
        ([0.25] * 4, 0.5, 2),
        ([0.0, 1.0, 0.0], 0.9, 1),
        ([1.0], 1.0, 1),
        ([0.5, 0.25, 0.25, 0.0], 1.0, 3),
        ([1 / 7] * 7 + [0.0] * 3, 1.0, 7),
        ([0.4, 0.3, 0.3], 0.7, 2),
    ],
)
def test_the_support_size_is_the_number_of_top_outcomes_that_hold_the_mass(probs, mass, size):
    assert sample.support_size(np.array(probs), mass) == size


def plain_kl(model, tokenizer, row, end, quantiles=None) -> tuple[float, float]:
    """The KL and its form, with every prefix in a plain pass and targets from a dictionary.

    Over all leaves, weighted by their probability; or over the leaves at some quantiles of the
    target, in the order of their tokens, in equal parts.
    """
    texts, probs, _ = distributions.canonical_outputs(row)
    prompt = trie.chat_ids(tokenizer, row["prompt"])
    paths = [(*trie.encode_one(tokenizer, text), end) for text in texts]
    leaves = sorted(zip(paths, probs, strict=True))
    alphabet = sorted({token for path in paths for token in path})
    mass = Counter()  # of each prefix
    children = defaultdict(set)  # of each prefix: the prefixes that are one token longer
    for path, q in leaves:
        for i in range(len(path) + 1):
            mass[path[:i]] += q
        for i in range(len(path)):
            children[path[:i]].add(path[: i + 1])

    if quantiles is not None:
        cumulative = np.cumsum([q for _, q in leaves])
        places = [int(np.argmax(cumulative > quantile)) for quantile in quantiles]
        leaves = [(leaves[place][0], 1 / len(quantiles)) for place in places]

    parts = {}  # of each prefix: its KL and its form
    for prefix in {path[:i] for path, _ in leaves for i in range(len(path))}:
        p = plain_probs(model, prompt + list(prefix))
        on_alphabet = p[alphabet].sum()
        form = -np.log(on_alphabet)
        shape = 0.0
        for child in children[prefix]:
            q = mass[child] / mass[prefix]
            shape += q * np.log(q / (p[child[-1]] / on_alphabet))
        parts[prefix] = np.array([form + shape, form])

    total = np.zeros(2)
    for path, q in leaves:
        total += q * np.mean([parts[path[:i]] for i in range(len(path))], axis=0)
    kl, form = total.tolist()
    return kl, form


def tree_of(row, tokenizer, end, bins=1001) -> trie.Trie:
    texts, probs, _ = distributions.canonical_outputs(row, bins)
    return trie.Trie(trie.encode(tokenizer, texts, end), probs)


@pytest.mark.parametrize("rows", [3, 256])
@pytest.mark.parametrize(
    "question, numeric",
    [(POISSON["prompt"], True), ("Name a random tree. Output ONLY the answer.", False)],
)
def test_logit_kl_equals_plain_forward_passes(model, tokenizer, end, question, numeric, rows):
    """So does its form, which is large only where the prompt does not ask for a number."""
    with torch.inference_mode():
        context = trie.prefill(model, [trie.chat_ids(tokenizer, question)])
    kl, form = plain_kl(model, tokenizer, POISSON | {"prompt": question}, end)
    measured = sample.logit_kl(model, context, tree_of(POISSON, tokenizer, end), 128, rows)
    assert measured == pytest.approx((kl, form), rel=1e-4, abs=1e-6)
    if numeric:
        assert 0 < form < 0.05 * kl
    else:
        assert form > 1


@pytest.mark.parametrize("rows", [3, 256])
@pytest.mark.parametrize("paths", [5, 16])
def test_logit_kl_takes_the_paths_in_the_middle_of_equal_parts(
    model, tokenizer, end, gaussian_context, paths, rows
):
    """These are the leaves at the quantiles (i + 1/2) / paths, and no others."""
    quantiles = (np.arange(paths) + 0.5) / paths
    expected = plain_kl(model, tokenizer, GAUSSIAN, end, quantiles)
    tree = tree_of(GAUSSIAN, tokenizer, end)
    measured = sample.logit_kl(model, gaussian_context, tree, paths, rows)
    assert measured == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_logit_kl_of_128_paths_is_close_to_that_of_all(model, tokenizer, end, gaussian_context):
    tree = tree_of(GAUSSIAN, tokenizer, end)
    exact, _ = sample.logit_kl(model, gaussian_context, tree, 1001, 256)
    approximate, _ = sample.logit_kl(model, gaussian_context, tree, 128, 256)
    assert approximate == pytest.approx(exact, rel=0.02)


WORDS = {
    "id": "a",
    "split": "own",
    "prompt": GAUSSIAN["prompt"],
    "outputs": ["3.5", "4", "red"],
    "probs": [0.5, 0.25, 0.25],
}


@pytest.mark.parametrize("row", [WORDS, GAUSSIAN | {"decimals": 2}], ids=["a list", "two decimals"])
def test_rows_may_bring_a_list_or_decimals(tmp_path, row):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    distributions.write_text(prompts, distributions.to_jsonl([row]))
    flags = ["--prompts", prompts, "--n", 20, "--paths", 4, "--bins", 500, "--out", out]
    call(sample, "numbers", "--model", TINY, *flags)
    (result,) = distributions.read_rows([out])
    assert {key: result[key] for key in row} == row
    assert len(result["draws"]) == 20
    assert (result["logit_kl_floor"] == 0) == ("outputs" in row)
    assert result["logit_kl"] > result["logit_kl_form"] > 0

    line = complaint(sample, "numbers", "--model", TINY, *flags)
    assert_mentions(line, out, "already")


def test_a_rows_logit_kl_follows_the_options(model, tokenizer, end, gaussian_context, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    distributions.write_text(prompts, distributions.to_jsonl([POISSON, GAUSSIAN]))
    flags = ["--prompts", prompts, "--n", 2, "--bins", 40, "--paths", 5, "--rows", 30]
    call(sample, "numbers", "--model", TINY, *flags, "--out", out)
    _, row = distributions.read_rows([out])

    tree = tree_of(GAUSSIAN, tokenizer, end, bins=40)
    exact = sample.logit_kl(model, gaussian_context, tree, 5, 256)
    assert row["bins"] == 40
    assert (row["logit_kl"], row["logit_kl_form"]) == pytest.approx(exact, rel=1e-4)
    _, _, perfect = distributions.canonical_outputs(GAUSSIAN, 40)
    floor = trie.kl_floor(tree.probs, perfect[tree.order], tree.lengths)
    assert row["logit_kl_floor"] == pytest.approx(floor)


# ----------------------------------------------------------------------------- prompts in language


def test_there_are_102_open_prompts_each_of_its_own_category():
    rows = sample.prompt_rows(SimpleNamespace(axis="open", prompts=None))
    assert len(rows) == 102
    assert len({row["id"] for row in rows}) == 102
    assert len({row["prompt"] for row in rows}) == 102
    assert len({row["category"].casefold() for row in rows}) == 102
    for row in rows:
        assert row["category"] in row["prompt"]
        assert row["prompt"].endswith(" Output ONLY the answer.")
    wordings = Counter(row["prompt"].replace(row["category"], "") for row in rows)
    assert len(wordings) == 6
    assert set(wordings.values()) == {17}


def prompts_in(file, text, axis="open") -> list[dict]:
    """The prompts that the sampler takes from a user's file with this text."""
    file.write_text(text)
    return sample.prompt_rows(SimpleNamespace(axis=axis, prompts=[str(file)]))


@pytest.mark.parametrize("axis", ["open", "mcq"])
def test_your_own_prompts_are_jsonl_or_a_list(tmp_path, axis):
    """A list may have rows or texts. Windows writes a byte order mark before the text."""
    file = tmp_path / "mine"
    tree, bird = '{"prompt": "A tree?"}', '{"prompt": "A bird?", "id": "b", "why": 1}'
    rows = [
        {"prompt": "A tree?", "id": f"{axis}-000"},
        {"prompt": "A bird?", "id": "b", "why": 1},
    ]
    assert prompts_in(file, f"{tree}\n{bird}\n", axis) == rows
    assert prompts_in(file, f" [{tree},\n {bird}]", axis) == rows

    texts = [
        {"id": f"{axis}-000", "prompt": "A tree?"},
        {"id": f"{axis}-001", "prompt": "A bird?"},
    ]
    assert prompts_in(file, '["A tree?", "A bird?"]', axis) == texts
    assert prompts_in(file, '\ufeff["A tree?", "A bird?"]', axis) == texts


@pytest.mark.parametrize(
    "text, facts",
    [
        ('{"id": "a"}', ("mine:1: ", "prompt")),
        ('{"prompt": 5}', ("mine", "prompt", "string")),
        ('{"prompt": "a", "id": null}', ("mine", "id", "string")),
        ('["A tree?", 5]', ("mine", "prompt", "string")),
        ('[{"id": "a"}]', ("mine", "prompt", "string")),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', ("mine", "same id")),
        ("", ("mine:1: ",)),
        ('{"prompt": "a"', ("mine:1: ",)),
        ('["A tree?", "A bird', ("mine",)),
        ('[{"prompt": "A tree?", "note": NaN}]', ("mine: ", "NaN")),
    ],
)
def test_bad_files_of_your_own_are_errors(tmp_path, text, facts):
    with pytest.raises(distributions.InputError) as error:
        prompts_in(tmp_path / "mine", text)
    assert_mentions(str(error.value).replace(str(tmp_path), ""), *facts)


def test_the_mcq_prompt_names_the_fields_that_the_score_looks_for():
    for label in ("Question:", "A.", "B.", "C.", "D.", "Correct Answer:", "Explanation:"):
        assert f"\n{label} <" in sample.MCQ


# -------------------------------------------------------------------------------------------- SSOT


def asked_by_ssot(axis, prompts, out, monkeypatch, *flags) -> tuple[list, list[dict]]:
    """Sample with --protocol ssot; returns what the chat template got, and the result rows."""
    chat_ids = trie.chat_ids
    asked = []

    def spied_chat_ids(tokenizer, prompt, system="", thinking=False):
        if system:
            asked.append((prompt, system, thinking))
        return chat_ids(tokenizer, prompt, system, thinking)

    flags = ["--prompts", prompts, "--protocol", "ssot", *flags]
    with monkeypatch.context() as patch:
        patch.setattr(trie, "chat_ids", spied_chat_ids)
        call(sample, axis, "--model", TINY, *flags, "--out", out)
    return asked, distributions.read_rows([out])


def test_ssot_is_a_system_prompt_with_the_tags_that_the_score_looks_for(tmp_path, monkeypatch):
    """There is one wording for numbers and one for open answers."""
    prompts = tmp_path / "prompts.jsonl"
    distributions.write_text(prompts, distributions.to_jsonl([POISSON]))
    systems = []
    for axis in ("numbers", "open"):
        out = tmp_path / f"{axis}.jsonl"
        flags = ["--n", 1, "--max-tokens", 1]
        asked, _ = asked_by_ssot(axis, prompts, out, monkeypatch, *flags)
        ((prompt, system, thinking),) = set(asked)
        assert prompt == POISSON["prompt"]
        assert thinking
        systems.append(system)
    assert systems[0] != systems[1]
    for system in systems:
        assert "{" not in system  # no placeholder is left
        for tag in ("random_string", "thinking", "answer"):
            assert f"<{tag}>" in system
            assert f"</{tag}>" in system


def test_ssots_draws_answer_the_system_prompt(model, tokenizer, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.jsonl"
    distributions.write_text(prompts, distributions.to_jsonl([POISSON]))
    out = tmp_path / "ssot.jsonl"
    flags = ["--n", 3, "--max-tokens", 20]
    asked, (row,) = asked_by_ssot("numbers", prompts, out, monkeypatch, *flags)
    assert row["method"] == row["protocol"] == "ssot"
    assert "logit_kl" not in row

    ids = trie.chat_ids(tokenizer, *asked[0])
    ends = model.generation_config.eos_token_id
    numbers = distributions.prompt_rng(0, POISSON["id"]).random((3, 20))
    paths = trie.walk(model, [ids], ends, numbers)
    assert row["draws"] == [sample.to_text(tokenizer, path, ends) for path in paths]


@pytest.mark.parametrize("protocol", ["ssot", None])
def test_thoughts_that_the_template_opens_are_shown_where_the_model_may_think(tmp_path, protocol):
    """Without its opening tag, a thought would pass for an answer."""
    folder = shutil.copytree(TINY, tmp_path / "thinking")
    template = folder / "chat_template.jinja"
    opening = "<|im_start|>assistant\n"
    thinking = opening + "{% if enable_thinking %}<think>\n{% endif %}"
    template.write_text(template.read_text().replace(opening, thinking))

    prompts, out = tmp_path / "mine.jsonl", tmp_path / "out.jsonl"
    distributions.write_text(prompts, distributions.to_jsonl([{"prompt": "Name a bird."}]))
    flags = ["--prompts", prompts, "--n", 3, "--max-tokens", 5, "--out", out]
    if protocol:
        flags += ["--protocol", protocol]
    call(sample, "open", "--model", folder, *flags)
    (row,) = distributions.read_rows([out])
    assert len(row["draws"]) == 3
    for text in row["draws"]:
        assert text.startswith("<think>") == (protocol == "ssot")


@pytest.mark.parametrize(
    "flags, n, max_tokens, rows",
    [
        (["numbers", "--prompts", "p.jsonl"], 1000, 32, 1024),
        (["open"], 100, 16, 1024),
        (["mcq"], 1000, 256, 256),
        (["numbers", "--prompts", "p.jsonl", "--protocol", "ssot"], 1000, 4096, 256),
        (["open", "--protocol", "ssot"], 100, 4096, 256),
    ],
    ids=["numbers", "open", "mcq", "numbers ssot", "open ssot"],
)
def test_default_options(flags, n, max_tokens, rows, tmp_path, monkeypatch):
    distributions.write_text(tmp_path / "p.jsonl", distributions.to_jsonl([GAUSSIAN]))
    monkeypatch.chdir(tmp_path)
    calls = []

    def spied_draw(args, prompts):
        calls.append(args)

    monkeypatch.setattr(sample, "draw", spied_draw)
    call(sample, *flags, "--model", TINY, "--out", "out.jsonl")
    (args,) = calls
    assert (args.n, args.max_tokens, args.rows, args.seed) == (n, max_tokens, rows, 0)
    if args.axis == "numbers":
        assert (args.bins, args.paths) == (1001, 128)
