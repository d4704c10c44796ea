"""Chat prompts, tries, the branched pass, the objectives, and training, against plain versions.

Chat prompts and tries are tested with tokenizers of five styles. The branched pass must equal
separate rows, the objectives are worked out by hand, and a few training steps must equal those of
a textbook loop.
"""

import json
import math
import shutil
import subprocess
from collections import Counter, defaultdict
from datetime import date

import numpy as np
import pytest
import torch
from conftest import (
    BRIEF,
    ENV,
    GEMMA,
    LLAMA,
    STYLES,
    TINY,
    assert_mentions,
    build,
    call,
    command,
    complaint,
)
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import distributions
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
    "qwen": "<|im_start|>user\nHi 1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "harmony": "<|start|>system<|message|>Reasoning: low<|end|><|start|>user<|message|>Hi 1<|end|>"
    "<|start|>assistant<|channel|>final<|message|>",
}


# -------------------------------------------------------------------- any tokenizer, any template


@pytest.mark.parametrize("style", STYLES)
def test_the_end_token_is_the_one_that_the_template_puts_after_an_answer(tokenizers, style):
    tokenizer = tokenizers[style]
    end = trie.end_token(tokenizer)
    assert tokenizer.convert_ids_to_tokens(end) == END[style]
    assert tokenizer.convert_tokens_to_ids(END[style]) == end
    if style == "gemma":
        assert end != tokenizer.eos_token_id


@pytest.mark.parametrize("style", RENDERED)
def test_prompt_ids_are_the_rendered_template(tokenizers, style):
    ids = trie.chat_ids(tokenizers[style], "Hi 1")
    assert trie.decode(tokenizers[style], ids) == RENDERED[style]


def test_prompt_ids_have_one_beginning_of_text(tokenizers):
    """Gemma's toy vocabulary lacks "H" and line breaks, so only the structure is compared."""
    text = trie.decode(tokenizers["gemma"], trie.chat_ids(tokenizers["gemma"], "Hi 1"))
    assert text.startswith("<bos><start_of_turn>user")
    assert text.count("<bos>") == 1
    assert "model" in text


def test_thinking_is_possible_where_the_template_has_it(tokenizers):
    shown = {}
    for style, tokenizer in tokenizers.items():
        ids = trie.chat_ids(tokenizer, "Hi 1", thinking=True)
        shown[style] = trie.decode(tokenizer, ids)
    assert "<think>" not in shown["qwen"]
    assert shown["qwen"] + "<think>\n\n</think>\n\n" == RENDERED["qwen"]
    assert shown["harmony"].endswith("<|start|>assistant")
    assert "Reasoning: low" in shown["harmony"]
    assert shown["llama"] == RENDERED["llama"]


@pytest.mark.parametrize("style", [style for style in STYLES if style != "gemma"])
def test_a_system_prompt_has_its_own_turn(tokenizers, style):
    tokenizer, thinking = tokenizers[style], style == "qwen"
    ids = trie.chat_ids(tokenizer, "model 1", "random number", thinking)
    text = trie.decode(tokenizer, ids)
    assert text.count("random number") == 1
    parts = [text.index(part) for part in ("system", "random number", "user", "model 1")]
    assert parts == sorted(parts)
    without = trie.chat_ids(tokenizer, "model 1", thinking=thinking)
    assert text.endswith(trie.decode(tokenizer, without)[-20:])


def test_a_system_prompt_goes_before_the_users_where_the_template_has_no_turn_for_it(tokenizers):
    tokenizer = tokenizers["gemma"]
    ids = trie.chat_ids(tokenizer, "model 1", "random number")
    assert ids == trie.chat_ids(tokenizer, "random number\n\nmodel 1")
    text = trie.decode(tokenizer, ids)
    assert "user" in text
    assert text.index("random number") < text.index("model 1")


DATE_BY_FUNCTION = "{{ strftime_now('%d %b %Y') }}"
DATE_BY_VARIABLE = (
    "{% if not date_string is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif %}"
    "{{ date_string }}"
)


@pytest.mark.parametrize("date_line", [DATE_BY_FUNCTION, DATE_BY_VARIABLE])
@pytest.mark.parametrize("template", [LLAMA, GEMMA])
def test_templates_that_print_todays_date_print_a_fixed_one(date_line, template):
    style = "llama" if template == LLAMA else "gemma"
    tokenizer = build(style)
    tokenizer.chat_template = date_line + template
    hello = [{"role": "user", "content": "Hi 1"}]
    text = trie.render(tokenizer, hello, add_generation_prompt=True)
    assert text.startswith("26 Jul 2024<")
    assert date.today().strftime("%d %b %Y") not in text
    assert tokenizer.convert_ids_to_tokens(trie.end_token(tokenizer)) == END[style]

    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d %B %y') }}" + template
    assert trie.render(tokenizer, hello).startswith("2024-07-26 July 24<")


@pytest.mark.parametrize("style", STYLES)
def test_texts_survive_the_round_trip(tokenizers, style):
    tokenizer = tokenizers[style]
    end = trie.end_token(tokenizer)
    texts = ["-12.34567", "0.00000", "7", "1234.50000", "100"]
    matrix = trie.encode(tokenizer, texts, end)
    for text, padded in zip(texts, matrix, strict=True):
        tokens = padded[padded != trie.PAD].tolist()
        assert tokens[-1] == end
        assert tokens.count(end) == 1
        assert trie.decode(tokenizer, tokens[:-1]) == text
        assert tokens[:-1] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_styles_merge_digits_differently(tokenizers):
    pieces = {}
    for style, tokenizer in tokenizers.items():
        tokens = trie.encode_one(tokenizer, "1234.5")
        pieces[style] = [trie.decode(tokenizer, [token]) for token in tokens]
    assert pieces["qwen"] == pieces["tiny"] == list("1234.5")
    assert pieces["llama"][0] == "123"


@pytest.mark.parametrize(
    "template, facts",
    [
        (None, ("template", "chat_template is not set")),
        ("{{ raise_exception('users may not speak') }}", ("template", "users may not speak")),
        ("{{ oops", ("template", "render")),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", ("template", "answer")),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", ("template", "answer")),
    ],
)
def test_an_unusable_template_is_an_error(tmp_path, template, facts):
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    if template:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(distributions.InputError) as error:
        trie.load(str(folder))
    assert_mentions(error.value, *facts)


# ------------------------------------------------------------------------------- the trie, by hand

# Three answers with one token per character:
#   root -> "1" .7, "2" .3;   "1" -> end .5/.7, "2" .2/.7;   "12" -> end 1;   "2" -> end 1
TEXTS = ["1", "2", "12"]
PROBS = np.array([0.5, 0.3, 0.2])


@pytest.fixture
def small(tokenizer, end) -> trie.Trie:
    """The trie of these three answers."""
    return trie.Trie(trie.encode(tokenizer, TEXTS, end), PROBS)


def leaf_of(tree: trie.Trie, text: str) -> int:
    return tree.order.tolist().index(TEXTS.index(text))


def test_targets_by_hand(small, tokenizer, end):
    one, two = trie.encode_one(tokenizer, "12")
    leaf = leaf_of(small, "12")
    assert small.path(leaf).tolist() == [one, two, end]
    assert small.lengths[leaf] == 3

    root, after_one, after_twelve = [
        dict(zip(tokens.tolist(), q, strict=True)) for tokens, q in small.path_targets(leaf)
    ]
    assert root == pytest.approx({one: 0.7, two: 0.3})
    assert after_one == pytest.approx({end: 5 / 7, two: 2 / 7})
    assert after_twelve == {end: 1}


def test_leaves_at_quantiles_are_as_frequent_as_probable(small):
    leaves = small.quantile_leaves((np.arange(1000) + 0.5) / 1000)
    counts = Counter(TEXTS[small.order[leaf]] for leaf in leaves)
    assert counts == {"1": 500, "2": 300, "12": 200}
    ends = np.array([0.0, np.nextafter(1, 0)])
    assert small.quantile_leaves(ends).tolist() == [0, 2]


def test_the_floor_by_hand():
    """Two of four equally likely values are kept: q = 1/2, and a perfect sampler has p = 1/4.

    That is log 2 nats, over 8 tokens for one and over 4 for the other.
    """
    q, perfect, lengths = np.array([0.5, 0.5]), np.array([0.25, 0.25]), np.array([8, 4])
    expected = math.log(2) * (0.5 / 8 + 0.5 / 4)
    assert trie.kl_floor(q, perfect, lengths) == pytest.approx(expected)
    assert trie.kl_floor(PROBS, PROBS, np.array([2, 2, 3])) == 0


# ------------------------------------------------------------------------- the trie, by brute force

TARGETS = {
    "gaussian": {"family": "gaussian", "params": {"mu": 3.5, "sigma": 3}},
    "two decimals": {"family": "gaussian", "params": {"mu": 3.5, "sigma": 3}, "decimals": 2},
    "skellam": {"family": "skellam", "params": {"mu1": 10.5, "mu2": 10.5}},
    "lognormal": {"family": "lognormal", "params": {"mu": 2.5, "sigma": 2}},
    "a list": {
        "outputs": ["random", "number", "model", "random model"],
        "probs": [0.4, 0.3, 0.2, 0.1],
    },
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("row", TARGETS.values(), ids=TARGETS)
def test_targets_equal_brute_force_at_every_prefix(tokenizers, style, row):
    tokenizer = tokenizers[style]
    end = trie.end_token(tokenizer)
    texts, probs, _ = distributions.canonical_outputs(row)
    children = defaultdict(Counter)  # a dictionary of all prefixes, which the kit never builds
    for text, p in zip(texts, probs, strict=True):
        path = (*tokenizer(text, add_special_tokens=False)["input_ids"], end)
        for i, token in enumerate(path):
            children[path[:i]][token] += p

    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    seen = set()
    for leaf in range(len(texts)):
        path = tuple(tree.path(leaf).tolist())
        for i, (tokens, q) in enumerate(tree.path_targets(leaf)):
            prefix = path[:i]
            if prefix in seen:
                continue
            seen.add(prefix)
            expected = children[prefix]
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
def test_the_floor_is_the_kl_of_a_perfect_sampler(tokenizer, end, family, params, tolerance):
    """A perfect sampler over every five-decimal text, by character, scored as a model is scored.

    Where all answers have one length, the two agree exactly. Where some have a minus sign, they
    agree to the tolerance: the floor weights a node's children by their own lengths, the score by
    that of the path.
    """
    row = {"family": family, "params": params}
    texts, probs, perfect = distributions.canonical_outputs(row)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)

    k = np.arange(-200000, 300001)  # all values, in units of the fifth decimal
    edges = (np.arange(k[0], k[-1] + 2) - 0.5) / 10**5
    p5 = np.diff(distributions.distribution(row).cdf(edges))
    mass = Counter()  # of every prefix; "$" is the end
    for text, p in zip(distributions.to_texts(k[p5 > 0], 10**5), p5[p5 > 0].tolist(), strict=True):
        for i in range(len(text) + 1):
            mass[text[:i]] += p
        mass[text + "$"] += p

    total = 0.0
    for leaf in range(len(texts)):
        text = texts[tree.order[leaf]]
        kl = 0.0
        for i, (tokens, q) in enumerate(tree.path_targets(leaf)):
            for token, share in zip(tokens.tolist(), q.tolist(), strict=True):
                character = "$" if token == end else trie.decode(tokenizer, [token])
                p = mass[text[:i] + character] / mass[text[:i]]
                kl += share * math.log(share / p)
        total += tree.probs[leaf] * kl / tree.lengths[leaf]

    floor = trie.kl_floor(tree.probs, perfect[tree.order], tree.lengths)
    assert floor == pytest.approx(total, rel=tolerance)
    assert 0.1 < floor < 1


# -------------------------------------------------------- prefill once, branch many: separate rows


def gemma() -> Gemma3ForCausalLM:
    """A Gemma 3 whose window, in all layers but one, is shorter than the prompts."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=16,
        max_position_embeddings=512,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )
    return Gemma3ForCausalLM(config).eval()


def tokens_read(model, work) -> tuple[int, object]:
    """How many tokens (padding included) the model reads while work() runs, and work()'s result."""
    read = []

    def count(module, args, kwargs):
        read.append(kwargs["input_ids"].numel())

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    result = work()
    hook.remove()
    return sum(read), result


def gradient_of(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# The length of what three prompts have in common, and the lengths of what follows in each.
LENGTHS = {
    "nothing in common": (0, (40, 23, 31)),
    "a common head": (25, (15, 3, 9)),
    "one prompt is the head and one token": (25, (9, 1, 20)),
}


@pytest.mark.parametrize("architecture", ["embedded", "gemma"])
@pytest.mark.parametrize("branches", [1, 4])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_branches_equal_separate_rows(model, architecture, branches, lengths):
    """Logits, loss and gradient of K answers behind one pass of their prompt equal K plain rows.

    The pass reads what the prompts have in common once, and the rest of each left-padded. The
    plain rows have no cache.
    """
    if architecture == "gemma":
        model = gemma()
    rng = torch.Generator().manual_seed(0)

    def random_tokens(n):
        return torch.randint(3, 250, (n,), generator=rng).tolist()

    head_length, rest_lengths = lengths
    head = random_tokens(head_length)
    prompts = [head + random_tokens(n) for n in rest_lengths]
    paths = [[random_tokens(n) for n in (5, 1, 3, 4)][:branches] for _ in prompts]
    longest = max(len(path) for group in paths for path in group)
    completions = torch.tensor(
        [path + [trie.PAD] * (longest - len(path)) for group in paths for path in group]
    )
    real = (completions != trie.PAD)[:, :, None]
    # With random weights, the loss depends on every logit.
    shape = (len(completions), longest, model.config.vocab_size)
    weights = torch.randn(shape, generator=rng)

    model.zero_grad()
    read, context = tokens_read(model, lambda: trie.prefill(model, prompts))
    branched = trie.branch(model, context, completions)
    loss = (branched.log_softmax(-1) * weights * real).sum()
    loss.backward()
    gradient = gradient_of(model)
    # A sliding window counts places in the cache, so there each prompt is read whole.
    shared = 0 if architecture == "gemma" else head_length
    assert read == shared + 3 * max(len(prompt) - shared for prompt in prompts)

    model.zero_grad()
    row = 0
    plain_loss = 0.0
    for prompt, group in zip(prompts, paths, strict=True):
        for path in group:
            ids = torch.tensor([prompt + path])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            torch.testing.assert_close(branched[row, : len(path)], logits, atol=2e-4, rtol=1e-4)
            part = (logits.log_softmax(-1) * weights[row, : len(path)]).sum()
            part.backward()
            plain_loss += part.item()
            row += 1
    plain_gradient = gradient_of(model)
    model.zero_grad()
    assert (gradient - plain_gradient).norm() / plain_gradient.norm() < 1e-5
    assert loss.item() == pytest.approx(plain_loss, rel=1e-5)


@torch.inference_mode()
def test_equal_prompts_are_read_once(model):
    """All but the last token, whose logits each row needs."""
    prompt = list(range(5, 45))
    read, context = tokens_read(model, lambda: trie.prefill(model, [prompt] * 6))
    assert read == 39 + 6
    alone = model(input_ids=torch.tensor([prompt])).logits[:, -1:]
    torch.testing.assert_close(context.logits, alone.expand(6, -1, -1), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_fork_leaves_its_source_alone(model):
    context = trie.prefill(model, [list(range(5, 25))])
    before = [layer.keys.clone() for layer in context.cache.layers]
    rows = torch.zeros(3, dtype=torch.long)
    tokens = torch.tensor([[7], [8], [9]])
    first = trie.extend(model, context.fork(rows), tokens)
    second = trie.extend(model, context.fork(rows), tokens)
    assert torch.equal(first.logits, second.logits)
    assert context.mask.shape == (1, 20)
    for keys, layer in zip(before, context.cache.layers, strict=True):
        assert torch.equal(keys, layer.keys)


# ---------------------------------------------------------------------------------- the objectives


def soft_batch(tree: trie.Trie, leaves) -> dict:
    answers = [{"path": tree.path(leaf), "targets": tree.path_targets(leaf)} for leaf in leaves]
    return train_soft.collate(answers)


def perfect_logits(batch: dict) -> torch.Tensor:
    """Logits (R, L, 260) whose softmax is the target at each prefix."""
    logits = torch.full((*batch["completions"].shape, 260), -1e4)
    return logits.scatter_(-1, batch["tokens"], batch["q"].clamp(min=1e-30).log())


def test_the_soft_loss_by_hand(small):
    """Where all V tokens are equally likely, KL = log V - H(q) at each prefix; then the mean."""
    batch = soft_batch(small, [leaf_of(small, "12")])
    (loss,) = train_soft.loss(torch.zeros(1, 3, 50), batch)
    at_root = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    after_one = -(5 / 7 * math.log(5 / 7) + 2 / 7 * math.log(2 / 7))
    after_twelve = 0
    mean_entropy = (at_root + after_one + after_twelve) / 3
    assert loss.item() == pytest.approx(math.log(50) - mean_entropy, rel=1e-6)


def test_the_soft_loss_is_zero_at_the_target_and_positive_elsewhere(small):
    batch = soft_batch(small, range(3))
    perfect = perfect_logits(batch)
    assert train_soft.loss(perfect, batch).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    for seed in range(5):
        logits = torch.randn(perfect.shape, generator=torch.Generator().manual_seed(seed))
        assert train_soft.loss(logits, batch).mean() > 0.5


def test_mass_on_tokens_outside_the_trie_costs(small):
    """If half of the mass is on such a token, the KL is log 2 at each prefix."""
    batch = soft_batch(small, [0])
    logits = perfect_logits(batch)
    logits[..., 259] = 0  # as much as all the children have together
    assert train_soft.loss(logits, batch).item() == pytest.approx(math.log(2), rel=1e-5)


def test_the_expected_hard_loss_is_entropy_plus_kl(small):
    """Over all answers, weighted by their probability: sum q (-log p) = H(q) + KL(q || p)."""
    torch.manual_seed(0)
    logits_after = defaultdict(lambda: torch.randn(260))  # of each prefix
    cross_entropy = kl = 0.0
    for leaf in range(3):
        path = small.path(leaf).tolist()
        logits = torch.stack([logits_after[tuple(path[:i])] for i in range(len(path))])
        batch = train_hard.collate([{"path": small.path(leaf)}])
        loss = train_hard.loss(logits[None], batch).item() * len(path)  # it is a mean over tokens
        log_p = sum(logits[i].log_softmax(-1)[token].item() for i, token in enumerate(path))
        q = small.probs[leaf]
        cross_entropy += q * loss
        kl += q * (math.log(q) - log_p)
    entropy = -sum(p * math.log(p) for p in PROBS)
    assert cross_entropy == pytest.approx(entropy + kl, rel=1e-6)
    assert kl > 1


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_losses_ignore_padding(module, small):
    """An answer's loss is the same beside a longer one, whatever the logits after its end are."""
    leaves = [leaf_of(small, "2"), leaf_of(small, "12")]
    assert small.lengths[leaves].tolist() == [2, 3]
    answers = [{"path": small.path(leaf), "targets": small.path_targets(leaf)} for leaf in leaves]
    logits = torch.randn(2, 3, 260, generator=torch.Generator().manual_seed(0))
    alone = module.loss(logits[:1, :2], module.collate(answers[:1]))
    batch = module.collate(answers)
    assert module.loss(logits, batch).shape == (2,)
    logits[0, 2] = 1e3 * logits[0, 1]
    assert module.loss(logits, batch)[0].item() == pytest.approx(alone.item())


# ---------------------------------------------------------------------------------------- training


def drawn_and_trained(module, monkeypatch, *flags) -> tuple[list, list]:
    """Run a small training and record its (prompt, answer) pairs.

    Returns what `prepare` drew, a list for each prompt, and what the model read, in order.
    """
    drawn, trained = [], []
    prompts_read = []
    prepare, prefill, branch = module.prepare, trie.prefill, trie.branch

    def spied_prepare(*args, **kwargs):
        example = prepare(*args, **kwargs)
        prompt = tuple(example["prompt"])
        drawn.append([(prompt, tuple(a["path"].tolist())) for a in example["answers"]])
        return example

    def spied_prefill(model, prompts):
        prompts_read.append(prompts)
        return prefill(model, prompts)

    def spied_branch(model, context, completions):
        prompts = prompts_read[-1]
        branches = len(completions) // len(prompts)
        for i, completion in enumerate(completions):
            path = tuple(completion[completion != trie.PAD].tolist())
            trained.append((tuple(prompts[i // branches]), path))
        return branch(model, context, completions)

    monkeypatch.setattr(module, "prepare", spied_prepare)
    monkeypatch.setattr(trie, "prefill", spied_prefill)
    monkeypatch.setattr(trie, "branch", spied_branch)
    call(module, "--model", TINY, *flags)
    return drawn, trained


@pytest.mark.parametrize("branches", [1, 4])
@pytest.mark.parametrize("module, draws", [(train_hard, 16), (train_soft, 8)])
def test_every_draw_of_an_epoch_is_trained_on_exactly_once(
    module, draws, branches, data, tmp_path, monkeypatch
):
    flags = ["--data", data / "train.jsonl", "--out", tmp_path / "out", "--limit", 3]
    flags += ["--epochs", 2, "--batch", 10, "--branches", branches]
    if module is train_soft:  # for train_hard, 16 is the default
        flags += ["--draws", draws]
    drawn, trained = drawn_and_trained(module, monkeypatch, *flags)
    assert len(drawn) == 3
    assert len(trained) == 2 * 3 * draws
    assert len({pair for answers in drawn for pair in answers}) > 4 * draws
    for epoch in range(2):
        expected = []
        for answers in drawn:
            expected += answers[epoch * draws : (epoch + 1) * draws]
        found = trained[epoch * 3 * draws : (epoch + 1) * 3 * draws]
        assert Counter(found) == Counter(expected)


SCALES = (10, 10**6, 10**3)  # of the loss, at each of three steps
RATE = 1e-3


def plain_training(module, rows) -> tuple[dict, dict, list[float]]:
    """Three training steps as a textbook has them: one row at a time, no cache, no clipping.

    Returns LoRA's weights before and after, by the names that PEFT saves them under, and the norm
    of each step's gradient.
    """
    model, tokenizer, end = trie.load(TINY)
    model = module.add_lora(model, seed=0)
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weights[name.replace(".default", "")] = parameter
    before = {name: p.detach().clone() for name, p in weights.items()}

    examples = []
    for row in rows:
        rng = distributions.prompt_rng(0, row["id"])
        examples.append(module.prepare(tokenizer, end, row, len(SCALES), rng))
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=0.01)
    norms = []
    for step, scale in enumerate(SCALES):
        answers = [example["answers"][step] for example in examples]
        total_weight = sum(answer["weight"] for answer in answers)
        for example, answer in zip(examples, answers, strict=True):
            prompt, path = example["prompt"], answer["path"].tolist()
            ids = torch.tensor([prompt + path])
            logits = model(input_ids=ids).logits[:, len(prompt) - 1 : -1]
            loss = module.loss(logits, module.collate([answer])).sum()
            (scale * loss * answer["weight"] / total_weight).backward()
        gradient = torch.cat([p.grad.flatten() for p in weights.values()])
        norms.append(gradient.norm().item())
        cosine = (1 + math.cos(math.pi * step / len(SCALES))) / 2
        optimizer.param_groups[0]["lr"] = RATE * cosine
        optimizer.step()
        optimizer.zero_grad()
    return before, {name: p.detach() for name, p in weights.items()}, norms


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_training_is_plain_adamw_without_clipping(module, data, tmp_path, monkeypatch):
    """The loss has another scale at each step, because AdamW forgets a constant gradient scale.

    Dropout is off, because its masks depend on how rows are laid out.
    """

    def without_dropout(**options):
        return LoraConfig(**options | {"lora_dropout": 0.0})

    monkeypatch.setattr(module, "LoraConfig", without_dropout)
    rows = distributions.read_prompts([data / "train.jsonl"], limit=4)
    before, plain, norms = plain_training(module, rows)
    assert min(norms) > 0.1
    assert norms[1] > 1e5

    loss, scales = module.loss, iter(SCALES)

    def scaled_loss(logits, batch):
        return loss(logits, batch) * next(scales)

    monkeypatch.setattr(module, "loss", scaled_loss)
    flags = ["--model", TINY, "--data", data / "train.jsonl", "--out", tmp_path / "out"]
    flags += ["--limit", 4, "--batch", 4, "--draws", 1, "--epochs", len(SCALES), "--lr", RATE]
    call(module, *flags)
    trained = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert trained.keys() == plain.keys()
    moved = sum((plain[key] - before[key]).square().sum() for key in plain)
    apart = sum((plain[key] - trained[key]).square().sum() for key in plain)
    assert (apart / moved).sqrt() < 3e-4  # without weight decay it would be 6e-4


@pytest.mark.parametrize("module, bins", [(train_soft, 1001), (train_hard, 16384)])
def test_answers_are_those_of_the_recipe(tokenizer, end, module, bins):
    """Each of soft's answers has the weight 1; each of hard's has that of its tokens."""
    assert module.BINS == bins
    (row,) = [r for r in distributions.make_rows("unseen") if r["family"] == "gaussian"]
    answers = module.prepare(tokenizer, end, row, 50, np.random.default_rng(0))["answers"]
    assert len({len(answer["path"]) for answer in answers}) > 1
    for answer in answers:
        assert answer["weight"] == (1 if module is train_soft else len(answer["path"]))


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_the_seed_determines_weights_draws_and_order(module, data, tmp_path):
    add_lora = module.add_lora
    seeds, runs = [], []

    def spied_add_lora(model, seed):
        seeds.append(seed)
        return add_lora(model, seed)

    flags = ["--data", data / "train.jsonl", "--limit", 12]
    flags += ["--epochs", 1, "--draws", 1, "--batch", 4]
    for seed in (0, 1):
        out = ["--out", tmp_path / str(seed), "--seed", seed]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "add_lora", spied_add_lora)
            runs.append(drawn_and_trained(module, patch, *flags, *out))
    (drawn, trained), (other_drawn, other_trained) = runs
    assert seeds == [0, 1]
    assert drawn != other_drawn
    assert [prompt for prompt, _ in trained] != [prompt for prompt, _ in other_trained]


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_lora_has_dropout_and_is_float32_whatever_the_model_is(module):
    model = module.add_lora(trie.load(TINY)[0].bfloat16(), 0)
    drops = [layer for layer in model.modules() if isinstance(layer, torch.nn.Dropout)]
    assert drops
    for drop in drops:
        assert drop.training
        assert drop.p == 0.05
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in model.parameters()}


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_lora_starts_from_the_seed(module, model):
    def start(seed):
        lora = module.add_lora(trie.load(TINY)[0], seed)
        return {name: p.detach().clone() for name, p in lora.named_parameters() if p.requires_grad}

    one, same, other = start(3), start(3), start(4)
    assert len(one) == model.config.num_hidden_layers * 4 * 2
    for key in one:
        assert torch.equal(one[key], same[key])
        if "lora_A" in key:
            assert not torch.equal(one[key], other[key])
        if "lora_B" in key:
            assert (one[key] == 0).all()


def test_a_model_is_its_weights_its_tokens_and_its_template(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"):
        folder = shutil.copytree(TINY, tmp_path / name)
        assert trie.identity(str(folder)) == trie.identity(TINY)
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
        assert trie.identity(str(folder)) != trie.identity(TINY)


def test_a_training_in_another_process_gives_the_same_bytes(adapters, data, tmp_path):
    """There, Python orders its sets differently."""
    flags = ["--model", TINY, "--data", data / "train.jsonl", "--out", tmp_path / "soft", *BRIEF]
    env = ENV | {"PYTHONHASHSEED": "1"}
    subprocess.run(command("train_soft.py", *flags), env=env, check=True, capture_output=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "soft" / name).read_bytes() == (adapters["soft"] / name).read_bytes()
    config = json.loads((tmp_path / "soft" / "adapter_config.json").read_text())
    modules = config["target_modules"]
    assert modules == sorted(modules)  # two processes might agree by chance


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_a_loss_that_is_not_finite_ends_the_training_and_nothing_is_saved(module, data, tmp_path):
    flags = ["--model", TINY, "--data", data / "train.jsonl", "--out", tmp_path / "out"]
    flags += ["--limit", 4, "--batch", 4, "--lr", 1e30]
    if module is train_hard:
        flags += ["--branches", 16]
    line = complaint(module, *flags)
    assert_mentions(line, "loss of step 2", "lower --lr")
    assert not list((tmp_path / "out").glob("adapter*"))
    assert len(distributions.read_rows([tmp_path / "out" / "log.jsonl"])) == 1


def test_a_model_that_lacks_weights_is_an_error(tmp_path):
    broken = shutil.copytree(TINY, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(distributions.InputError) as error:
        trie.load(str(broken))
    assert_mentions(error.value, broken, "model.layers.1.mlp.up_proj.weight")
