"""Chat prompts, end tokens and prefix tries, for tokenizers of five styles; the branched pass against separate rows."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from conftest import STYLES
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import distributions as d
import train_hard
import train_soft
import trie

END = {
    "tiny": "<|im_end|>",
    "llama": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "qwen": "<|im_end|>",
    "harmony": "<|return|>",
}
RENDERED = {
    "tiny": "<|im_start|>user\nHi 1<|im_end|>\n<|im_start|>assistant\n",
    "llama": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi 1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<bos><start_of_turn>user\nHi 1<end_of_turn>\n<start_of_turn>model\n",
    "qwen": "<|im_start|>user\nHi 1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "harmony": "<|start|>system<|message|>Reasoning: low<|end|><|start|>user<|message|>Hi 1<|end|>"
    "<|start|>assistant<|channel|>final<|message|>",
}


# ------------------------------------------------------------------------------- any tokenizer, any template


@pytest.mark.parametrize("style", STYLES)
def test_end_token_is_the_template_s_own(tokenizers, style):
    tokenizer = tokenizers[style]
    assert tokenizer.convert_ids_to_tokens(trie.end_token(tokenizer)) == END[style]
    if style in ("llama", "gemma"):
        assert trie.end_token(tokenizer) == tokenizer.convert_tokens_to_ids(END[style])
    if style == "gemma":
        assert trie.end_token(tokenizer) != tokenizer.eos_token_id


@pytest.mark.parametrize("style", STYLES)
def test_prompt_ids_are_the_rendered_template_once(tokenizers, style):
    ids = trie.chat_ids(tokenizers[style], "Hi 1")
    text = trie.decode(tokenizers[style], ids)
    if style == "gemma":  # its toy vocabulary has no "H" or line break; the structure is what counts
        assert text.startswith("<bos><start_of_turn>user") and text.count("<bos>") == 1 and "model" in text
    else:
        assert text == RENDERED[style]


def test_thinking_is_on_where_the_template_has_it(tokenizers):
    shown = {style: trie.decode(t, trie.chat_ids(t, "Hi 1", thinking=True)) for style, t in tokenizers.items()}
    assert "<think>" not in shown["qwen"] and shown["qwen"] + "<think>\n\n</think>\n\n" == RENDERED["qwen"]
    assert shown["harmony"].endswith("<|start|>assistant") and "Reasoning: medium" in shown["harmony"]
    assert shown["llama"] == RENDERED["llama"]


@pytest.mark.parametrize("style", STYLES)
def test_texts_survive_the_round_trip(tokenizers, style):
    tokenizer, end = tokenizers[style], trie.end_token(tokenizers[style])
    texts = ["-12.34567", "0.00000", "7", "1234.50000", "100"]
    tokens = trie.encode(tokenizer, texts, end)
    for text, row in zip(texts, tokens, strict=True):
        row = row[row != trie.PAD].tolist()
        assert row[-1] == end and row.count(end) == 1 and trie.decode(tokenizer, row[:-1]) == text
        assert row[:-1] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_digit_merges_differ_between_styles(tokenizers):
    pieces = {s: [trie.decode(t, [i]) for i in trie.encode_one(t, "1234.5")] for s, t in tokenizers.items()}
    assert pieces["qwen"] == pieces["tiny"] == list("1234.5") and pieces["llama"][0] == "123"


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "no chat template"),
        ("{{ raise_exception('users may not speak') }}", "users may not speak"),
        ("{{ oops", "cannot render"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "does not close an answer"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not close an answer"),
    ],
)
def test_unusable_templates_are_refused(tokenizer, tmp_path, template, message):
    with pytest.raises(d.InputError, match=message):
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        if template:
            (tmp_path / "chat_template.jinja").write_text(template)
        trie.end_token(trie.load_tokenizer(str(tmp_path)))


# ---------------------------------------------------------------------------------------- the trie, by hand

# Three answers, "1", "12" and "2", with probabilities .5, .2 and .3, written with one token per character:
#   root -> "1" .7, "2" .3;   "1" -> end .5/.7, "2" .2/.7;   "12" -> end 1;   "2" -> end 1
TEXTS, PROBS = ["1", "2", "12"], np.array([0.5, 0.3, 0.2])


@pytest.fixture
def small(tokenizer):
    end = trie.end_token(tokenizer)
    one, two = trie.encode_one(tokenizer, "12")
    return trie.Trie(trie.encode(tokenizer, TEXTS, end), PROBS), one, two, end


def test_targets_by_hand(small):
    tree, one, two, end = small
    leaf = [TEXTS[i] for i in tree.order].index("12")
    root, after_one, after_twelve = (dict(zip(t.tolist(), q, strict=True)) for t, q in tree.path_targets(leaf))
    assert tree.path(leaf).tolist() == [one, two, end] and tree.lengths[leaf] == 3
    assert root == pytest.approx({one: 0.7, two: 0.3})
    assert after_one == pytest.approx({end: 5 / 7, two: 2 / 7})
    assert after_twelve == {end: 1}


def test_quantile_leaves(small):
    tree = small[0]
    drawn = tree.quantile_leaves((np.arange(1000) + 0.5) / 1000)
    assert {TEXTS[tree.order[leaf]]: n for leaf, n in Counter(drawn.tolist()).items()} == {
        "1": 500,
        "2": 300,
        "12": 200,
    }
    assert tree.quantile_leaves(np.array([0.0, np.nextafter(1, 0)])).tolist() == [0, 2]


def test_soft_loss_by_hand(small):
    """A model that finds all V tokens equally likely: KL = log V - H(q) at each prefix, then the mean on the path."""
    tree, *_ = small
    leaf = [TEXTS[i] for i in tree.order].index("12")
    completions, tokens, q = map(torch.from_numpy, trie.pad_targets([tree.path(leaf)], [tree.path_targets(leaf)]))
    loss = train_soft.soft_loss(torch.zeros(1, 3, 50), tokens, q, completions != trie.PAD)
    entropies = [-(0.7 * math.log(0.7) + 0.3 * math.log(0.3)), -(5 / 7 * math.log(5 / 7) + 2 / 7 * math.log(2 / 7)), 0]
    assert loss.item() == pytest.approx(math.log(50) - sum(entropies) / 3, rel=1e-6)


def test_floor_by_hand():
    """Two kept values of four equally likely ones: q = 1/2, p5 = 1/4, so log 2 nats, over 8 and over 4 tokens."""
    assert trie.kl_floor(np.array([0.5, 0.5]), np.array([0.25, 0.25]), np.array([8, 4])) == pytest.approx(
        math.log(2) * (0.5 / 8 + 0.5 / 4)
    )
    assert trie.kl_floor(PROBS, PROBS, np.array([2, 2, 3])) == 0


# ------------------------------------------------------------------------------- the trie, by brute force


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "family, params",
    [
        ("gaussian", {"mu": 3.5, "sigma": 3}),
        ("skellam", {"mu1": 10.5, "mu2": 10.5}),
        ("lognormal", {"mu": 2.5, "sigma": 2}),
    ],
)
def test_targets_equal_a_brute_force_at_every_prefix(tokenizers, style, family, params):
    tokenizer = tokenizers[style]
    end = trie.end_token(tokenizer)
    texts, probs = d.canonical_outputs(family, params)
    children = defaultdict(Counter)  # the dictionary of prefixes that the kit itself never builds
    for text, p in zip(texts, probs, strict=True):
        path = (*tokenizer(text, add_special_tokens=False)["input_ids"], end)
        for i, token in enumerate(path):
            children[path[:i]][token] += p
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    seen = set()
    for leaf in range(len(texts)):
        path = tuple(tree.path(leaf).tolist())
        for i, (tokens, q) in enumerate(tree.path_targets(leaf)):
            if path[:i] not in seen:
                seen.add(path[:i])
                expected = children[path[:i]]
                total = sum(expected.values())
                assert sorted(tokens.tolist()) == sorted(expected)
                assert q == pytest.approx([expected[t] / total for t in tokens.tolist()], rel=1e-9)
                assert q.sum() == pytest.approx(1)
    assert seen == set(children)


@pytest.mark.parametrize(
    "family, params, tolerance",
    [
        ("beta", {"alpha": 2, "beta": 3}, 1e-9),
        ("gaussian", {"mu": 0.5, "sigma": 0.2}, 2e-3),
        ("exponential", {"lambda": 7}, 1e-9),
    ],
)
def test_floor_equals_the_kl_of_a_brute_force_perfect_sampler(tokenizer, family, params, tolerance):
    """A perfect sampler over every five-decimal string, character by character, scored as a model is scored.

    Where all answers have one length the two agree exactly; where some have a minus sign, to the tolerance:
    the floor weights a node's children by their own lengths, the score by that of the path.
    """
    end = trie.end_token(tokenizer)
    texts, probs = d.canonical_outputs(family, params)
    spec, args = d.scipy_args(family, params)
    k = np.arange(-200000, 300001)
    p5 = np.diff(spec.dist.cdf((np.arange(k[0], k[-1] + 2) - 0.5) / d.UNIT, *args))
    mass = Counter()  # of every string prefix
    for text, p in zip(d.to_texts(spec, k[p5 > 0]), p5[p5 > 0].tolist(), strict=True):
        for i in range(len(text) + 1):
            mass[text[:i]] += p
        mass[text + "$"] += p
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    total = 0.0
    for leaf in range(len(texts)):
        text, kl = texts[tree.order[leaf]], 0.0
        for i, (tokens, q) in enumerate(tree.path_targets(leaf)):
            for token, share in zip(tokens.tolist(), q.tolist(), strict=True):
                char = "$" if token == end else trie.decode(tokenizer, [token])
                kl += share * math.log(share * mass[text[:i]] / mass[text[:i] + char])
        total += tree.probs[leaf] * kl / tree.lengths[leaf]
    floor = trie.kl_floor(tree.probs, d.perfect_probs(family, params)[tree.order], tree.lengths)
    assert floor == pytest.approx(total, rel=tolerance) and 0.1 < floor < 1


# ------------------------------------------------------------------ prefill once, branch many = separate rows


def gemma():
    """A Gemma-3 whose window is shorter than the prompts, in all layers but one."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=260, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=16, max_position_embeddings=512,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


@pytest.mark.parametrize("architecture", ["embedded", "gemma"])
@pytest.mark.parametrize("branches", [1, 4])
def test_branches_equal_separate_rows(model, architecture, branches):
    """Loss and gradient of K branches behind one left-padded prompt pass, against K plain rows without a cache."""
    model = model if architecture == "embedded" else gemma()
    rng = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(3, 250, (n,), generator=rng).tolist()  # noqa: E731
    prompts = [draw(n) for n in (40, 23, 31)]
    paths = [[draw(n) for n in (5, 1, 3, 4)][:branches] for _ in prompts]
    length = max(len(path) for group in paths for path in group)
    completions = torch.tensor([path + [trie.PAD] * (length - len(path)) for group in paths for path in group])
    weights = torch.randn(len(completions), length, 260, generator=rng)  # a loss that sees every logit
    real = (completions != trie.PAD)[:, :, None]
    vocab = model.config.vocab_size

    model.zero_grad()
    branched = trie.branch(model, trie.prefill(model, prompts), completions)
    (branched.log_softmax(-1) * weights[..., :vocab] * real).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])

    model.zero_grad()
    row = 0
    for prompt, group in zip(prompts, paths, strict=True):
        for path in group:
            logits = model(input_ids=torch.tensor([prompt + path])).logits[0, len(prompt) - 1 : -1]
            torch.testing.assert_close(branched[row, : len(path)], logits, atol=2e-4, rtol=1e-4)
            (logits.log_softmax(-1) * weights[row, : len(path), :vocab]).sum().backward()
            row += 1
    plain = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (gradient - plain).norm() / plain.norm() < 1e-5
    model.zero_grad()


def test_a_fork_leaves_its_source_alone(model):
    with torch.inference_mode():
        prefix = trie.prefill(model, [list(range(5, 25))])
        before = [layer.keys.clone() for layer in prefix.cache.layers]
        rows = torch.zeros(3, dtype=torch.long)
        first, _ = trie.extend(model, prefix.fork(rows), torch.tensor([[7], [8], [9]]))
        second, _ = trie.extend(model, prefix.fork(rows), torch.tensor([[7], [8], [9]]))
    assert torch.equal(first.logits, second.logits) and prefix.mask.shape == (1, 20)
    assert all(torch.equal(a, layer.keys) for a, layer in zip(before, prefix.cache.layers, strict=True))


# ------------------------------------------------------------------------------------------- the objectives


def test_soft_loss_is_zero_at_the_target_and_positive_elsewhere(small):
    tree, *_ = small
    leaves = range(3)
    completions, tokens, q = map(
        torch.from_numpy, trie.pad_targets([tree.path(i) for i in leaves], [tree.path_targets(i) for i in leaves])
    )
    perfect = torch.full((3, completions.shape[1], 260), -1e4)
    perfect.scatter_(-1, tokens, q.clamp(min=1e-30).log())
    assert train_soft.soft_loss(perfect, tokens, q, completions != trie.PAD).item() == pytest.approx(0, abs=1e-6)
    for seed in range(5):
        logits = torch.randn(perfect.shape, generator=torch.Generator().manual_seed(seed))
        assert train_soft.soft_loss(logits, tokens, q, completions != trie.PAD) > 0.5


def test_mass_on_other_tokens_costs(small):
    """Half of a perfect model's mass moved to tokens outside the trie: log 2 at each prefix."""
    tree, *_ = small
    completions, tokens, q = map(torch.from_numpy, trie.pad_targets([tree.path(0)], [tree.path_targets(0)]))
    logits = torch.full((1, completions.shape[1], 260), -1e4)
    logits.scatter_(-1, tokens, q.clamp(min=1e-30).log())
    logits[..., 259] = 0  # as much as all the children together
    loss = train_soft.soft_loss(logits, tokens, q, completions != trie.PAD)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)


def test_hard_loss_in_expectation_is_entropy_plus_kl(small):
    """Over all answers, weighted by their probability: sum q (-log p) = H(q) + KL(q || p), per answer."""
    tree, *_ = small
    torch.manual_seed(0)
    by_prefix = defaultdict(lambda: torch.randn(260))
    cross_entropy = kl = 0.0
    for leaf in range(3):
        path = tree.path(leaf).tolist()
        logits = torch.stack([by_prefix[tuple(path[:i])] for i in range(len(path))])[None]
        loss = train_hard.hard_loss(logits, torch.tensor([path])).item() * len(path)
        log_p = sum(by_prefix[tuple(path[:i])].log_softmax(-1)[token].item() for i, token in enumerate(path))
        cross_entropy += tree.probs[leaf] * loss
        kl += tree.probs[leaf] * (math.log(tree.probs[leaf]) - log_p)
    entropy = -sum(p * math.log(p) for p in PROBS)
    assert cross_entropy == pytest.approx(entropy + kl, rel=1e-6) and kl > 1


def test_hard_loss_ignores_padding(small):
    logits = torch.randn(1, 4, 260, generator=torch.Generator().manual_seed(0))
    short = train_hard.hard_loss(logits[:, :2], torch.tensor([[5, 6]]))
    assert train_hard.hard_loss(logits, torch.tensor([[5, 6, trie.PAD, trie.PAD]])).item() == pytest.approx(
        short.item()
    )
