"""The sampler, the support size and the exact logit KL, against plain forward passes of the embedded model; what is
asked on each axis."""

import json
import shutil
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, call, complaint
from scipy import stats
from transformers import AutoModelForCausalLM

import sample
import trie
from distributions import (
    InputError,
    canonical_outputs,
    make_rows,
    prompt_rng,
    read_rows,
    to_jsonl,
    write_text,
)

GAUSSIAN, POISSON, BROAD = (
    [r for s in ("unseen", "ood") for r in make_rows(s) if r["id"] == i][0]
    for i in ("unseen-gaussian-000", "ood-poisson-001", "unseen-negative_binomial-000")
)


@pytest.fixture(scope="module")
def asked(tokenizer) -> list[list[int]]:
    """Three prompts of different lengths, one of them not about a number, to which the base gives several answers."""
    texts = (GAUSSIAN["prompt"], BROAD["prompt"], sample.MCQ)
    prompts = [trie.chat_ids(tokenizer, text) for text in texts]
    assert len({len(prompt) for prompt in prompts}) == 3
    return prompts


@pytest.fixture(scope="module")
def prompt(model, asked):
    with torch.inference_mode():
        return trie.prefill(model, asked[:1])


def uniform(n, max_tokens, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, max_tokens))


def plain_probs(model, ids: list[int]) -> np.ndarray:
    """The next token's distribution by a plain forward pass, float64."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()


def plain_draws(model, ids, ends, numbers) -> list[list[int]]:
    """Ordinary sampling, a token at a time, each from a forward pass over everything so far."""
    cdfs, paths = {}, []
    for own in numbers:
        path = []
        for u in own:
            if tuple(path) not in cdfs:
                cdfs[tuple(path)] = plain_probs(model, ids + path).cumsum()
            cdf = cdfs[tuple(path)]
            path.append(int(np.searchsorted(cdf, u * cdf[-1], "right")))
            if path[-1] in ends:
                break
        paths.append(path)
    return paths


def batches(model, work) -> list[int]:
    """How many rows go into each forward pass while work() runs."""
    rows = []
    hook = model.register_forward_pre_hook(
        lambda m, args, kw: rows.append(len(kw["input_ids"])), with_kwargs=True
    )
    work()
    hook.remove()
    return rows


# ----------------------------------------------------------------------------------------------- the sampler


@pytest.mark.parametrize("which", range(3))
def test_the_walk_draws_what_plain_sampling_draws(model, asked, end, which):
    """The same random numbers give the same answers, in the same order, ended or cut."""
    numbers = uniform(48, 30, seed=which)
    paths = trie.walk(model, [asked[which]], [end], numbers)
    assert paths == plain_draws(model, asked[which], [end], numbers)
    assert len(set(map(tuple, paths))) > 3 and all(
        path[-1] == end or len(path) == 30 for path in paths
    )


def test_the_walk_is_the_same_for_any_budget_and_in_any_company(model, asked, end):
    numbers = uniform(3 * 40, 8)
    together = trie.walk(model, asked, [end], numbers)
    for rows in (1, 7, 40, 64, 120):
        assert trie.walk(model, asked, [end], numbers, rows) == together
    alone = [
        trie.walk(model, [ids], [end], numbers[i * 40 : i * 40 + 40]) for i, ids in enumerate(asked)
    ]
    assert sum(alone, []) == together
    ended = [path[-1] == end for path in together]
    assert any(ended) and not all(ended)
    assert trie.walk(model, asked, [end], uniform(3 * 40, 8, seed=1)) != together


def test_each_distinct_prefix_is_one_row_and_never_more_than_the_budget(model, asked, end):
    """Rows without a draw read on until they are a quarter of all."""
    numbers = uniform(3 * 60, 8)
    prefill, *steps = batches(model, lambda: trie.walk(model, asked, [end], numbers))[-8:]
    paths = trie.walk(model, asked, [end], numbers)
    for t, rows in enumerate(
        steps, 1
    ):  # what was read at step t: the prefixes of t tokens that went on
        distinct = len({(i // 60, *path[:t]) for i, path in enumerate(paths) if len(path) > t})
        assert distinct <= rows <= distinct / 0.75
    assert max(steps) < 180 and prefill == 3
    assert max(batches(model, lambda: trie.walk(model, asked, [end], numbers, rows=16))) <= 16


def test_the_walk_stops_at_every_end_and_at_nothing_else(model, tokenizer, asked, end):
    numbers, (five, dot) = uniform(3 * 60, 12), trie.encode_one(tokenizer, "5.")
    paths = trie.walk(model, asked, [end], numbers)
    assert any(five in path for path in paths) and all(end not in path[:-1] for path in paths)
    cut = lambda path: (
        path[: min(path.index(t) for t in (five, dot) if t in path) + 1]
        if {five, dot} & {*path}
        else path
    )
    assert trie.walk(model, asked, [end, five, dot], numbers) == [cut(path) for path in paths]


def chi_square(observed: Counter, expected: dict, n: int) -> float:
    """p-value, with everything that expects fewer than five draws pooled into one cell."""
    kept = [key for key, p in expected.items() if p * n >= 5]
    rest = 1 - sum(expected[key] for key in kept)
    seen, wanted = [observed[key] for key in kept], [expected[key] * n for key in kept]
    if rest * n >= 1:
        seen, wanted = [*seen, n - sum(seen)], [*wanted, rest * n]
    return stats.chisquare(seen, wanted, sum_check=False).pvalue if len(seen) > 1 else 1.0


def test_first_tokens_follow_the_full_softmax(model, asked, end):
    probs = plain_probs(model, asked[0])
    counts = Counter(
        path[0] for path in trie.walk(model, asked[:1], [end], uniform(20_000, 1), rows=4096)
    )
    assert counts.total() == 20_000
    assert chi_square(counts, dict(enumerate(probs)), 20_000) > 1e-3


def test_answers_follow_the_exact_probabilities(model, asked, end):
    """All paths of up to three tokens, from the chain rule over plain forward passes."""
    exact, level = {}, {(): 1.0}
    for depth in range(3):
        deeper = {}
        for path, mass in level.items():
            for token, p in enumerate(plain_probs(model, asked[0] + list(path))):
                if mass * p > 1e-6:
                    final = token == end or depth == 2
                    (exact if final else deeper)[path + (token,)] = mass * p
        level = dict(sorted(deeper.items(), key=lambda item: -item[1])[:60])
    counts = Counter(
        map(tuple, trie.walk(model, asked[:1], [end], uniform(20_000, 3, seed=1), rows=4096))
    )
    assert counts.total() == 20_000 and len(counts) > 10
    assert chi_square(counts, exact, 20_000) > 1e-3


def test_choose_uses_each_draw_s_own_row_and_number():
    logits = torch.tensor([[0.25, 0.25, 0.5], [1.0, 1e-30, 1e-30]]).log()
    owner, numbers = (
        torch.tensor([0, 0, 0, 1]),
        torch.tensor([0.1, 0.3, 0.99, 0.99], dtype=torch.float64),
    )
    assert trie.choose(logits, owner, numbers).tolist() == [0, 1, 2, 0]
    mixed = torch.tensor([2, 0, 3, 1])  # the same draws in another order
    assert trie.choose(logits, owner[mixed], numbers[mixed]).tolist() == [2, 0, 0, 1]


def test_choose_never_takes_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    numbers = torch.tensor([0.0, np.nextafter(1, 0)], dtype=torch.float64)
    assert trie.choose(logits, torch.zeros(2, dtype=torch.long), numbers).tolist() == [1, 1]


HOSTILE = {
    "do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "max_new_tokens": 1, "min_new_tokens": 3,
    "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(3, 100)),
}  # fmt: skip


def test_of_the_generation_config_only_the_ends_count(model, tokenizer, end, tmp_path):
    """A checkpoint that says "4" and "." are ends: answers are those of the embedded model, cut there."""
    more = trie.encode_one(tokenizer, "4.")
    hostile = shutil.copytree(TINY, tmp_path / "hostile")
    (hostile / "generation_config.json").write_text(json.dumps(HOSTILE | {"eos_token_id": more}))
    assert AutoModelForCausalLM.from_pretrained(hostile).generation_config.top_k == 1
    other, _, template_s = trie.load(str(hostile))
    assert template_s == end and set(other.generation_config.eos_token_id) == {end, *more}
    write_text(tmp_path / "prompts.jsonl", to_jsonl([GAUSSIAN, POISSON]))
    rows = {}
    for name, folder in (("plain", TINY), ("hostile", hostile)):
        flags = ("--prompts", tmp_path / "prompts.jsonl", "--n", 60, "--max-tokens", 5)
        call(sample, "numbers", "--model", folder, *flags, "--out", tmp_path / f"{name}.jsonl")
        rows[name] = read_rows([tmp_path / f"{name}.jsonl"])
    for plain, cut in zip(rows["plain"], rows["hostile"], strict=True):
        assert cut["draws"] == [draw.replace("4", ".").split(".")[0] for draw in plain["draws"]]
        assert any(a != b for a, b in zip(plain["draws"], cut["draws"], strict=True))
        assert (plain["logit_kl"], plain["logit_kl_form"]) == (
            cut["logit_kl"],
            cut["logit_kl_form"],
        )
    # A checkpoint whose eos is one id, or none, is as good.
    for eos, ends in ((more[0], [end, more[0]]), (None, [end])):
        (hostile / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
        assert set(trie.load(str(hostile))[0].generation_config.eos_token_id) == set(ends)


def test_draws_are_the_walk_s_in_their_order(model, tokenizer, asked, end, tmp_path):
    """From each prompt's own stream, whatever the budget of rows; an answer that was cut ends in "…"."""
    write_text(tmp_path / "prompts.jsonl", to_jsonl([GAUSSIAN, BROAD]))
    for rows in (3, 512):
        flags = (
            "--prompts",
            tmp_path / "prompts.jsonl",
            "--n",
            30,
            "--max-tokens",
            4,
            "--rows",
            rows,
            "--seed",
            5,
        )
        call(sample, "numbers", "--model", TINY, *flags, "--out", tmp_path / f"{rows}.jsonl")
        results = read_rows([tmp_path / f"{rows}.jsonl"])
        assert 0 < sum(draw.endswith("…") for row in results for draw in row["draws"]) < 60
        for row, ids in zip(results, asked[:2], strict=True):
            paths = trie.walk(model, [ids], [end], prompt_rng(5, row["id"]).random((30, 4)))
            texts = [
                tokenizer.decode(path[:-1]) if path[-1] == end else tokenizer.decode(path) + "…"
                for path in paths
            ]
            assert row["draws"] == texts and row["tokens"] == sum(map(len, paths))


# ------------------------------------------------------------------------------------------ exact probabilities


@pytest.mark.parametrize(
    "probs, mass, size",
    [
        ([0.5, 0.3, 0.2], 0.9, 3), ([0.5, 0.4, 0.1], 0.9, 2), ([0.1, 0.4, 0.5], 0.9, 2), ([0.95, 0.05], 0.9, 1),
        ([0.25] * 4, 0.9, 4), ([0.1] * 10, 0.9, 9), ([0.25] * 4, 0.5, 2), ([0.0, 1.0, 0.0], 0.9, 1), ([1.0], 1.0, 1),
        ([0.5, 0.25, 0.25, 0.0], 1.0, 3), ([1 / 7] * 7 + [0.0] * 3, 1.0, 7), ([0.4, 0.3, 0.3], 0.7, 2),
    ],
)  # fmt: skip
def test_support_size(probs, mass, size):
    assert sample.support_size(np.array(probs), mass) == size


def kl_by_plain_passes(model, tokenizer, row, end, quantiles=None) -> tuple[float, float]:
    """(KL, its form), every prefix in a forward pass of its own, with targets from a dictionary of prefixes: over all
    leaves by their probability or, in equal parts, over those at some quantiles of the target in the order of tokens."""
    texts, probs, _ = canonical_outputs(row)
    ids = trie.chat_ids(tokenizer, row["prompt"])
    leaves = sorted(
        ((*trie.encode_one(tokenizer, text), end), q) for text, q in zip(texts, probs, strict=True)
    )
    alphabet = sorted({token for path, _ in leaves for token in path})
    mass, children = Counter(), defaultdict(set)
    for path, q in leaves:
        for i in range(len(path) + 1):
            mass[path[:i]] += q
            children[path[: max(i - 1, 0)]] |= {path[:i]} if i else set()

    if quantiles is not None:
        held = np.cumsum([q for _, q in leaves])
        leaves = [
            (leaves[int(np.argmax(held > quantile))][0], 1 / len(quantiles))
            for quantile in quantiles
        ]

    node = {}
    for prefix in {path[:i] for path, _ in leaves for i in range(len(path))}:
        p = plain_probs(model, ids + list(prefix))
        shares = {child: mass[child] / mass[prefix] for child in children[prefix]}
        number = p[alphabet].sum()
        shape = sum(q * np.log(q * number / p[child[-1]]) for child, q in shares.items())
        node[prefix] = np.array([-np.log(number) + shape, -np.log(number)])
    return tuple(
        sum(
            q * np.mean([node[path[:i]] for i in range(len(path))], 0) for path, q in leaves
        ).tolist()
    )


def tree_of(row, tokenizer, end) -> trie.Trie:
    texts, probs, _ = canonical_outputs(row)
    return trie.Trie(trie.encode(tokenizer, texts, end), probs)


@pytest.mark.parametrize(
    "question", [POISSON["prompt"], "Name a random tree. Output ONLY the answer."]
)
def test_logit_kl_equals_plain_forward_passes(model, tokenizer, end, question):
    """And so does its form, which is most of it where a number is not what was asked for."""
    row = POISSON | {"prompt": question}
    with torch.inference_mode():
        prompt = trie.prefill(model, [trie.chat_ids(tokenizer, question)])
    kl, form = kl_by_plain_passes(model, tokenizer, row, end)
    for rows in (3, 256):
        assert sample.logit_kl(
            model, prompt, tree_of(row, tokenizer, end), 128, rows
        ) == pytest.approx((kl, form), rel=1e-4, abs=1e-6)
    assert 0 < form < 0.05 * kl if question == POISSON["prompt"] else form > 1


@pytest.mark.parametrize("paths", [5, 16])
def test_logit_kl_s_paths_are_at_the_middles_of_equal_parts(model, tokenizer, end, prompt, paths):
    """The leaves at the quantiles (i + 1/2) / paths, and no others."""
    quantiles = (np.arange(paths) + 0.5) / paths
    expected = kl_by_plain_passes(model, tokenizer, GAUSSIAN, end, quantiles)
    for rows in (3, 256):
        measured = sample.logit_kl(model, prompt, tree_of(GAUSSIAN, tokenizer, end), paths, rows)
        assert measured == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_logit_kl_of_equal_mass_paths_is_close_to_that_of_all(model, tokenizer, end, prompt):
    tree = tree_of(GAUSSIAN, tokenizer, end)
    exact, _ = sample.logit_kl(model, prompt, tree, 1001, 256)
    assert sample.logit_kl(model, prompt, tree, 128, 256)[0] == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a", "split": "own", "prompt": GAUSSIAN["prompt"], "outputs": ["3.5", "4", "red"], "probs": [0.5, 0.25, 0.25]},
        GAUSSIAN | {"decimals": 2},
    ],
    ids=["a list", "two decimals"],
)  # fmt: skip
def test_rows_with_targets_of_their_own_are_drawn_and_scored(model, tokenizer, end, tmp_path, row):
    write_text(tmp_path / "prompts.jsonl", to_jsonl([row]))
    flags = ("--prompts", tmp_path / "prompts.jsonl", "--n", 20, "--paths", 4, "--bins", 500)
    call(sample, "numbers", "--model", TINY, *flags, "--out", tmp_path / "out.jsonl")
    (result,) = read_rows([tmp_path / "out.jsonl"])
    assert {key: result[key] for key in row} == row and len(result["draws"]) == 20
    assert (result["logit_kl_floor"] == 0) == ("outputs" in row) and result["logit_kl"] > result[
        "logit_kl_form"
    ] > 0
    line = complaint(sample, "numbers", "--model", TINY, *flags, "--out", tmp_path / "out.jsonl")
    assert "out.jsonl is there already" in line


def test_a_rows_logit_kl_is_that_of_its_options(model, tokenizer, end, prompt, tmp_path):
    write_text(tmp_path / "prompts.jsonl", to_jsonl([POISSON, GAUSSIAN]))
    flags = (
        "--prompts",
        tmp_path / "prompts.jsonl",
        "--n",
        2,
        "--bins",
        40,
        "--paths",
        5,
        "--rows",
        30,
    )
    call(sample, "numbers", "--model", TINY, *flags, "--out", tmp_path / "out.jsonl")
    row = read_rows([tmp_path / "out.jsonl"])[1]
    texts, probs, perfect = canonical_outputs(GAUSSIAN, 40)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    exact = sample.logit_kl(model, prompt, tree, 5, 256)
    assert row["bins"] == 40 and (row["logit_kl"], row["logit_kl_form"]) == pytest.approx(
        exact, rel=1e-4
    )
    assert row["logit_kl_floor"] == pytest.approx(
        trie.kl_floor(tree.probs, perfect[tree.order], tree.lengths)
    )


# ------------------------------------------------------------------------------------------- prompts in language


def test_102_prompts_each_of_its_own_category():
    rows = sample.prompt_rows(SimpleNamespace(axis="open", prompts=None))
    assert (
        len(rows) == len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == 102
    )
    assert len({row["category"].casefold() for row in rows}) == 102
    for row in rows:
        assert row["category"] in row["prompt"] and row["prompt"].endswith(
            " Output ONLY the answer."
        )
    used = Counter(row["prompt"].replace(row["category"], "") for row in rows)
    assert set(used.values()) == {17} and len(used) == 6


def own(path, text, axis="open"):
    path.write_text(text)
    return sample.prompt_rows(SimpleNamespace(axis=axis, prompts=[str(path)]))


@pytest.mark.parametrize("axis", ["open", "mcq"])
def test_prompts_of_one_s_own(tmp_path, axis):
    """JSONL, or a JSON list of rows or of texts."""
    rows = own(
        tmp_path / "a", '{"prompt": "A tree?"}\n{"prompt": "A bird?", "id": "b", "why": 1}\n', axis
    )
    assert rows == [
        {"prompt": "A tree?", "id": f"{axis}-000"},
        {"prompt": "A bird?", "id": "b", "why": 1},
    ]
    assert (
        own(
            tmp_path / "a",
            ' [{"prompt": "A tree?"},\n {"prompt": "A bird?", "id": "b", "why": 1}]',
            axis,
        )
        == rows
    )
    texts = own(tmp_path / "a", '["A tree?", "A bird?"]', axis)
    assert texts == [
        {"id": f"{axis}-{i:03d}", "prompt": text} for i, text in enumerate(("A tree?", "A bird?"))
    ]
    assert (
        own(tmp_path / "a", '\ufeff["A tree?", "A bird?"]', axis) == texts
    )  # a byte order mark, as Windows writes it


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"id": "a"}', ":1: needs an object with the keys prompt"),
        ('{"prompt": 5}', "there must be prompts, each, and each id, a text"),
        ('{"prompt": "a", "id": null}', "there must be prompts, each, and each id, a text"),
        ('["A tree?", 5]', "there must be prompts, each, and each id, a text"),
        ('[{"id": "a"}]', "there must be prompts, each, and each id, a text"),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', "two prompts have the same id"),
        ("", ":1: "),
        ('{"prompt": "a"', ":1: "),
        ('["A tree?", "A bird', "mine"),
    ],
)
def test_bad_prompts_of_one_s_own(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        own(tmp_path / "mine", text)


def test_the_protocols_name_what_the_scores_look_for():
    for label in ("Question:", "A.", "B.", "C.", "D.", "Correct Answer:", "Explanation:"):
        assert f"\n{label} <" in sample.MCQ
    for tag in ("random_string", "thinking", "answer"):
        assert (
            f"<{tag}>" in sample.PROTOCOLS["ssot"].prompt
            and f"</{tag}>" in sample.PROTOCOLS["ssot"].prompt
        )
    assert "twenty" in sample.PROTOCOLS["batch"].prompt and sample.PROTOCOLS["batch"].answers == 20
    assert "answer | probability" in sample.PROTOCOLS["verbalized"].prompt
    for protocol in sample.PROTOCOLS.values():
        asked = [protocol.prompt.format(*what) for what in sample.ASKED.values()]
        assert len(set(asked)) == 2 and not any("{" in text for text in asked)


@pytest.mark.parametrize(
    "flags, n, max_tokens, rows",
    [
        (["numbers", "--prompts", "p.jsonl"], 1000, 32, 1024), (["open"], 100, 16, 1024), (["mcq"], 1000, 256, 256),
        (["open", "--protocol", "ssot"], 100, 4096, 256), (["open", "--protocol", "batch"], 100, 1024, 256),
        (["numbers", "--prompts", "p.jsonl", "--protocol", "verbalized"], 1000, 512, 256),
    ],
)  # fmt: skip
def test_defaults(flags, n, max_tokens, rows, tmp_path, monkeypatch):
    write_text(tmp_path / "p.jsonl", to_jsonl([GAUSSIAN]))
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(sample, "draw", lambda args, rows: asked.append(args))
    call(sample, *flags, "--model", TINY, "--out", "out.jsonl")
    assert (asked[0].n, asked[0].max_tokens, asked[0].rows, asked[0].seed) == (
        n,
        max_tokens,
        rows,
        0,
    )
    assert flags[0] != "numbers" or (asked[0].bins, asked[0].paths) == (1001, 128)


@pytest.mark.parametrize("protocol, opened", [("ssot", True), ("batch", False), (None, False)])
def test_a_protocol_that_thinks_shows_the_thoughts_that_the_template_opens(
    tmp_path, protocol, opened
):
    folder = shutil.copytree(TINY, tmp_path / "thinking")
    template, answer = folder / "chat_template.jinja", "<|im_start|>assistant\n"
    text = template.read_text().replace(
        answer, answer + "{% if enable_thinking %}<think>\n{% endif %}"
    )
    template.write_text(text)
    flags = ("--n", 3, "--max-tokens", 5, *(("--protocol", protocol) if protocol else ()))
    write_text(tmp_path / "mine.jsonl", to_jsonl([{"prompt": "Name a bird."}]))
    call(
        sample,
        "open",
        "--model",
        folder,
        "--prompts",
        tmp_path / "mine.jsonl",
        *flags,
        "--out",
        tmp_path / "out.jsonl",
    )
    (row,) = read_rows([tmp_path / "out.jsonl"])
    assert row["draws"] and all(text.startswith("<think>") == opened for text in row["draws"])


def test_a_batch_asks_for_as_many_replies_as_hold_so_many_answers(model, tokenizer, end, tmp_path):
    """45 answers are three replies of twenty; the system prompt is the protocol's, without thoughts."""
    row = make_rows("ood")[3]
    prompts = write_text(tmp_path / "p.jsonl", to_jsonl([row])) or tmp_path / "p.jsonl"
    out = tmp_path / "batch.jsonl"
    call(
        sample,
        "numbers",
        "--model",
        TINY,
        "--prompts",
        prompts,
        "--n",
        45,
        "--protocol",
        "batch",
        "--max-tokens",
        20,
        "--out",
        out,
    )
    (drawn,) = read_rows([out])
    assert (
        len(drawn["draws"]) == 3
        and drawn["method"] == drawn["protocol"] == "batch"
        and "logit_kl" not in drawn
    )
    system = sample.PROTOCOLS["batch"].prompt.format(*sample.ASKED["numbers"])
    ids = trie.chat_ids(tokenizer, row["prompt"], system)
    uniform, ends = prompt_rng(0, row["id"]).random((3, 20)), model.generation_config.eos_token_id
    assert drawn["draws"] == [
        sample.written(tokenizer, path, ends) for path in trie.walk(model, [ids], ends, uniform)
    ]
