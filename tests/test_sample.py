"""Both samplers, the support size and the exact logit KL, against plain forward passes of the embedded model."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from scipy import stats
from transformers import AutoModelForCausalLM

import sample
import trie
from distributions import InputError, canonical_outputs, make_rows

GAUSSIAN, POISSON = (
    [r for s in ("unseen", "ood") for r in make_rows(s) if r["id"] == i][0]
    for i in ("unseen-gaussian-000", "ood-poisson-001")
)


@pytest.fixture(scope="module")
def prompt(model, tokenizer):
    with torch.inference_mode():
        return trie.prefill(model, [trie.chat_ids(tokenizer, GAUSSIAN["prompt"])])


def drawn(model, prompt, n, max_tokens, seed=0, rows=256, end=2):
    return sample.draw(model, prompt, end, n, max_tokens, np.random.default_rng(seed), rows)


def plain_probs(model, ids: list[int]) -> np.ndarray:
    """The next token's distribution by a plain forward pass, float64."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()


def chi_square(observed: Counter, expected: dict, n: int) -> float:
    """p-value, with everything that expects fewer than five draws pooled into one cell."""
    kept = [key for key, p in expected.items() if p * n >= 5]
    rest = 1 - sum(expected[key] for key in kept)
    seen, wanted = [observed[key] for key in kept], [expected[key] * n for key in kept]
    if rest * n >= 1:
        seen, wanted = [*seen, n - sum(seen)], [*wanted, rest * n]
    return stats.chisquare(seen, wanted, sum_check=False).pvalue if len(seen) > 1 else 1.0


def test_first_tokens_follow_the_full_softmax(model, tokenizer, prompt):
    probs = plain_probs(model, trie.chat_ids(tokenizer, GAUSSIAN["prompt"]))
    counts = Counter({path[0]: c for path, c in drawn(model, prompt, 20_000, 1).items()})
    assert counts.total() == 20_000
    assert chi_square(counts, dict(enumerate(probs)), 20_000) > 1e-3


def test_answers_follow_the_exact_probabilities(model, tokenizer, prompt):
    """All paths of up to three tokens, from the chain rule over plain forward passes."""
    ids = trie.chat_ids(tokenizer, GAUSSIAN["prompt"])
    exact, level = {}, {(): 1.0}
    for depth in range(3):
        deeper = {}
        for path, mass in level.items():
            for token, p in enumerate(plain_probs(model, ids + list(path))):
                if mass * p > 1e-6:
                    final = token == 2 or depth == 2
                    (exact if final else deeper)[path + (token,)] = mass * p
        level = dict(sorted(deeper.items(), key=lambda item: -item[1])[:60])
    counts = drawn(model, prompt, 20_000, 3, seed=1)
    assert counts.total() == 20_000 and len(counts) > 10
    assert chi_square(counts, exact, 20_000) > 1e-3


def test_choose_uses_each_draw_s_own_row_and_number():
    logits = torch.tensor([[0.25, 0.25, 0.5], [1.0, 1e-30, 1e-30]]).log()
    owner, uniform = torch.tensor([0, 0, 0, 1]), torch.tensor([0.1, 0.3, 0.99, 0.99], dtype=torch.float64)
    assert sample.choose(logits, owner, uniform).tolist() == [0, 1, 2, 0]


def test_choose_never_takes_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    uniform = torch.tensor([0.0, np.nextafter(1, 0)], dtype=torch.float64)
    assert sample.choose(logits, torch.zeros(2, dtype=torch.long), uniform).tolist() == [1, 1]


def test_same_seed_same_draws_whatever_the_row_budget(model, prompt):
    first = drawn(model, prompt, 300, 8)
    assert first == drawn(model, prompt, 300, 8) == drawn(model, prompt, 300, 8, rows=7)
    assert first != drawn(model, prompt, 300, 8, seed=1)
    assert first.total() == 300 and all(path[-1] == 2 or len(path) == 8 for path in first)
    assert all(2 not in path[:-1] for path in first)


def test_no_more_rows_than_the_budget(model, prompt, monkeypatch):
    widths = []
    extend = trie.extend
    monkeypatch.setattr(trie, "extend", lambda m, p, t, keep=0: widths.append(len(t)) or extend(m, p, t, keep))
    drawn(model, prompt, 200, 8, rows=16)
    assert max(widths) <= 16


HOSTILE = {
    "do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "max_new_tokens": 1, "min_new_tokens": 3,
    "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(3, 100)), "eos_token_id": [70, 71],
}  # fmt: skip


def test_the_generation_config_changes_nothing(model, tokenizer, tmp_path, prompt):
    hostile = shutil.copytree(TINY, tmp_path / "hostile")
    (hostile / "generation_config.json").write_text(json.dumps(HOSTILE))
    assert AutoModelForCausalLM.from_pretrained(hostile).generation_config.top_k == 1
    other = trie.load_model(str(hostile))
    with torch.inference_mode():
        same = trie.prefill(other, [trie.chat_ids(tokenizer, GAUSSIAN["prompt"])])
    assert drawn(other, same, 200, 8) == drawn(model, prompt, 200, 8)
    ids = [trie.chat_ids(tokenizer, GAUSSIAN["prompt"])] * 50
    uniform = np.random.default_rng(0).random((50, 8))
    assert sample.generate(other, ids, 2, uniform) == sample.generate(model, ids, 2, uniform)


def test_generate_draws_what_the_walk_draws(model, tokenizer):
    """The same random numbers give the same answers, in batches over prompts of different lengths, of any size."""
    ids = [trie.chat_ids(tokenizer, row["prompt"]) for row in (GAUSSIAN, POISSON)]
    uniform = np.random.default_rng(3).random((60, 4))
    paths = sample.generate(model, [ids[i % 2] for i in range(60)], 2, uniform)
    in_parts = [
        sample.generate(model, [ids[i % 2] for i in range(s, s + 12)], 2, uniform[s : s + 12]) for s in range(0, 60, 12)
    ]
    assert paths == sum(in_parts, [])
    ended = [path[-1] == 2 for path in paths]
    assert any(ended) and not all(ended) and len(set(map(tuple, paths))) > 10
    for i in (0, 1):
        with torch.inference_mode():
            prefix = trie.prefill(model, [ids[i]])
        fixed = SimpleNamespace(random=lambda shape, i=i: uniform[i::2])
        assert sample.draw(model, prefix, 2, 30, 4, fixed, 256) == Counter(map(tuple, paths[i::2]))


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


# ------------------------------------------------------------------------------------------- prompts in language


def test_102_prompts_each_of_its_own_category():
    rows = sample.prompt_rows(SimpleNamespace(command="open", prompts=None))
    assert len(rows) == len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == 102
    assert len({row["category"].casefold() for row in rows}) == 102
    for row in rows:
        assert row["category"] in row["prompt"] and row["prompt"].endswith(" Output ONLY the answer.")
    used = Counter(row["prompt"].replace(row["category"], "") for row in rows)
    assert set(used.values()) == {17} and len(used) == 6


def test_prompts_of_one_s_own(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "A tree?"}\n{"prompt": "A bird?", "id": "b", "why": 1}\n')
    rows = sample.prompt_rows(SimpleNamespace(command="open", prompts=[tmp_path / "mine.jsonl"]))
    assert rows == [{"prompt": "A tree?", "id": "open-000"}, {"prompt": "A bird?", "id": "b", "why": 1}]
    for bad, message in (
        ('{"id": "a"}', ":1: needs an object with the keys prompt"),
        ('{"prompt": 5}', ":1: prompt must"),
        ('{"prompt": "a", "id": null}', ":1: id must"),
    ):
        (tmp_path / "mine.jsonl").write_text(bad + "\n")
        with pytest.raises(InputError, match=message):
            sample.prompt_rows(SimpleNamespace(command="open", prompts=[tmp_path / "mine.jsonl"]))


def test_the_protocols_name_what_the_scores_look_for():
    for label in ("Question:", "A.", "B.", "C.", "D.", "Correct Answer:", "Explanation:"):
        assert f"\n{label} <" in sample.MCQ
    for tag in ("random_string", "thinking", "answer"):
        assert f"<{tag}>" in sample.SSOT and f"</{tag}>" in sample.SSOT


def kl_by_plain_passes(model, tokenizer, row, end) -> float:
    """Every prefix of every leaf in its own forward pass, with targets from a dictionary of prefixes."""
    texts, probs = canonical_outputs(row["family"], row["params"])
    ids = trie.chat_ids(tokenizer, row["prompt"])
    paths = [(*trie.encode_one(tokenizer, text), end) for text in texts]
    mass = Counter()
    for path, q in zip(paths, probs, strict=True):
        for i in range(len(path) + 1):
            mass[path[:i]] += q
    node = {}
    for prefix in {path[:i] for path in paths for i in range(len(path))}:
        p = plain_probs(model, ids + list(prefix))
        children = {
            path[: len(prefix) + 1] for path in paths if path[: len(prefix)] == prefix and len(path) > len(prefix)
        }
        shares = {child: mass[child] / mass[prefix] for child in children}
        node[prefix] = sum(q * np.log(q / p[child[-1]]) for child, q in shares.items())
    per_path = [np.mean([node[path[:i]] for i in range(len(path))]) for path in paths]
    return float(probs @ per_path)


def test_logit_kl_equals_plain_forward_passes(model, tokenizer):
    end = trie.end_token(tokenizer)
    texts, probs = canonical_outputs(POISSON["family"], POISSON["params"])
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    with torch.inference_mode():
        prompt = trie.prefill(model, [trie.chat_ids(tokenizer, POISSON["prompt"])])
    expected = kl_by_plain_passes(model, tokenizer, POISSON, end)
    for rows in (3, 256):
        assert sample.logit_kl(model, prompt, tree, 128, rows) == pytest.approx(expected, rel=1e-4)


def test_logit_kl_of_equal_mass_paths_is_close_to_that_of_all(model, tokenizer, prompt):
    texts, probs = canonical_outputs(GAUSSIAN["family"], GAUSSIAN["params"])
    tree = trie.Trie(trie.encode(tokenizer, texts, trie.end_token(tokenizer)), probs)
    exact = sample.logit_kl(model, prompt, tree, 1001, 256)
    assert sample.logit_kl(model, prompt, tree, 128, 256) == pytest.approx(exact, rel=0.02)
