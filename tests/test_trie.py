"""Chat prompts, end tokens and prefix tries, for tokenizers of five styles; the branched pass against separate rows;
the objectives by hand; a few training steps against plain ones."""

import json
import math
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import date

import numpy as np
import pytest
import torch
from conftest import BRIEF, ENV, GEMMA, LLAMA, ROOT, STYLES, TINY, build, call, complaint
from peft import LoraConfig
from safetensors.torch import load_file, save_file
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
    if (
        style == "gemma"
    ):  # its toy vocabulary has no "H" or line break; the structure is what counts
        assert (
            text.startswith("<bos><start_of_turn>user")
            and text.count("<bos>") == 1
            and "model" in text
        )
    else:
        assert text == RENDERED[style]


def test_thinking_is_on_where_the_template_has_it(tokenizers):
    shown = {
        style: trie.decode(t, trie.chat_ids(t, "Hi 1", thinking=True))
        for style, t in tokenizers.items()
    }
    assert (
        "<think>" not in shown["qwen"]
        and shown["qwen"] + "<think>\n\n</think>\n\n" == RENDERED["qwen"]
    )
    assert shown["harmony"].endswith("<|start|>assistant") and "Reasoning: low" in shown["harmony"]
    assert shown["llama"] == RENDERED["llama"]


@pytest.mark.parametrize("style", STYLES)
def test_a_system_prompt_has_its_own_turn_or_goes_in_front(tokenizers, style):
    tokenizer, thinking = tokenizers[style], style == "qwen"
    ids = trie.chat_ids(tokenizer, "model 1", "random number", thinking)
    if style == "gemma":  # its template refuses a system turn
        assert ids == trie.chat_ids(tokenizer, "random number\n\nmodel 1")
        assert "user" in (text := trie.decode(tokenizer, ids)) and text.index(
            "random number"
        ) < text.index("model 1")
    else:
        text = trie.decode(tokenizer, ids)
        assert text.count("random number") == 1 and text.index("system") < text.index(
            "random number"
        )
        assert text.index("random number") < text.index("user") < text.index("model 1")
        assert text.endswith(
            trie.decode(tokenizer, trie.chat_ids(tokenizer, "model 1", thinking=thinking))[-20:]
        )


@pytest.mark.parametrize(
    "date_line",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}",
    ],
)
@pytest.mark.parametrize("template", [LLAMA, GEMMA])
def test_templates_that_print_today_s_date_print_the_pinned_one(date_line, template):
    tokenizer = build("llama" if template == LLAMA else "gemma")
    tokenizer.chat_template = date_line + template
    hello = [{"role": "user", "content": "Hi 1"}]
    text = trie.render(tokenizer, hello, add_generation_prompt=True)
    assert text.startswith("26 Jul 2024<") and date.today().strftime("%d %b %Y") not in text
    end = "<|eot_id|>" if template == LLAMA else "<end_of_turn>"
    assert tokenizer.convert_ids_to_tokens(trie.end_token(tokenizer)) == end
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d %B %y') }}" + template
    assert trie.render(tokenizer, hello).startswith("2024-07-26 July 24<")


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
    pieces = {
        s: [trie.decode(t, [i]) for i in trie.encode_one(t, "1234.5")]
        for s, t in tokenizers.items()
    }
    assert pieces["qwen"] == pieces["tiny"] == list("1234.5") and pieces["llama"][0] == "123"


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "cannot render a user.s prompt: .*chat_template is not set"),
        ("{{ raise_exception('users may not speak') }}", "users may not speak"),
        ("{{ oops", "cannot render"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "does not close an answer"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not close an answer"),
    ],
)
def test_unusable_templates_are_refused(tmp_path, template, message):
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    if template:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(d.InputError, match=message):
        trie.load(str(folder))


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
    root, after_one, after_twelve = (
        dict(zip(t.tolist(), q, strict=True)) for t, q in tree.path_targets(leaf)
    )
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


def soft_batch(tree, leaves):
    return train_soft.collate(
        [{"path": tree.path(leaf), "targets": tree.path_targets(leaf)} for leaf in leaves]
    )


def test_soft_loss_by_hand(small):
    """A model that finds all V tokens equally likely: KL = log V - H(q) at each prefix, then the mean on the path."""
    tree, *_ = small
    leaf = [TEXTS[i] for i in tree.order].index("12")
    (loss,) = train_soft.loss(torch.zeros(1, 3, 50), soft_batch(tree, [leaf]))
    entropies = [
        -(0.7 * math.log(0.7) + 0.3 * math.log(0.3)),
        -(5 / 7 * math.log(5 / 7) + 2 / 7 * math.log(2 / 7)),
        0,
    ]
    assert loss.item() == pytest.approx(math.log(50) - sum(entropies) / 3, rel=1e-6)


def test_floor_by_hand():
    """Two kept values of four equally likely ones: q = 1/2, p5 = 1/4, so log 2 nats, over 8 and over 4 tokens."""
    assert trie.kl_floor(
        np.array([0.5, 0.5]), np.array([0.25, 0.25]), np.array([8, 4])
    ) == pytest.approx(math.log(2) * (0.5 / 8 + 0.5 / 4))
    assert trie.kl_floor(PROBS, PROBS, np.array([2, 2, 3])) == 0


# ------------------------------------------------------------------------------- the trie, by brute force


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "row",
    [
        {"family": "gaussian", "params": {"mu": 3.5, "sigma": 3}},
        {"family": "gaussian", "params": {"mu": 3.5, "sigma": 3}, "decimals": 2},
        {"family": "skellam", "params": {"mu1": 10.5, "mu2": 10.5}},
        {"family": "lognormal", "params": {"mu": 2.5, "sigma": 2}},
        {"outputs": ["random", "number", "model", "random model"], "probs": [0.4, 0.3, 0.2, 0.1]},
    ],
    ids=["gaussian", "two decimals", "skellam", "lognormal", "a list"],
)
def test_targets_equal_a_brute_force_at_every_prefix(tokenizers, style, row):
    tokenizer = tokenizers[style]
    end = trie.end_token(tokenizer)
    texts, probs, _ = d.canonical_outputs(row)
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
    end, row = trie.end_token(tokenizer), {"family": family, "params": params}
    texts, probs, perfect = d.canonical_outputs(row)
    k = np.arange(-200000, 300001)
    p5 = np.diff(d.distribution(row).cdf((np.arange(k[0], k[-1] + 2) - 0.5) / 10**5))
    mass = Counter()  # of every string prefix
    for text, p in zip(d.to_texts(k[p5 > 0], 10**5), p5[p5 > 0].tolist(), strict=True):
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
    floor = trie.kl_floor(tree.probs, perfect[tree.order], tree.lengths)
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


def tokens_read(model, work) -> tuple[int, object]:
    """How many tokens go into a model while work() runs, padding included, and what work() returns."""
    read = []
    hook = model.register_forward_pre_hook(
        lambda m, args, kw: read.append(kw["input_ids"].numel()), with_kwargs=True
    )
    result = work()
    hook.remove()
    return sum(read), result


# Lengths of three prompts behind a common head of so many tokens; 0: one prompt is the head alone and a token.
HEADS = {
    "nothing in common": (0, 40, 23, 31),
    "a common head": (25, 15, 3, 9),
    "a short one": (25, 9, 1, 20),
}


@pytest.mark.parametrize("architecture", ["embedded", "gemma"])
@pytest.mark.parametrize("branches", [1, 4])
@pytest.mark.parametrize("lengths", HEADS.values(), ids=HEADS)
def test_branches_equal_separate_rows(model, architecture, branches, lengths):
    """Logits, loss and gradient of K branches behind one prompt pass, which reads what the prompts have in common once
    and left-pads the rest, against K plain rows without a cache."""
    model = model if architecture == "embedded" else gemma()
    rng = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(3, 250, (n,), generator=rng).tolist()
    head, *rests = lengths
    head = draw(head)
    prompts = [head + draw(n) for n in rests]
    paths = [[draw(n) for n in (5, 1, 3, 4)][:branches] for _ in prompts]
    length = max(len(path) for group in paths for path in group)
    completions = torch.tensor(
        [path + [trie.PAD] * (length - len(path)) for group in paths for path in group]
    )
    weights = torch.randn(
        len(completions), length, model.config.vocab_size, generator=rng
    )  # sees every logit
    real = (completions != trie.PAD)[:, :, None]

    model.zero_grad()
    read, prefix = tokens_read(model, lambda: trie.prefill(model, prompts))
    branched = trie.branch(model, prefix, completions)
    loss = (branched.log_softmax(-1) * weights * real).sum()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    # A sliding window counts places in the cache, so there each prompt is read whole.
    shared = 0 if architecture == "gemma" else len(head)
    assert read == shared + 3 * max(len(prompt) - shared for prompt in prompts)

    model.zero_grad()
    row = plain_loss = 0
    for prompt, group in zip(prompts, paths, strict=True):
        for path in group:
            logits = model(input_ids=torch.tensor([prompt + path])).logits[0, len(prompt) - 1 : -1]
            torch.testing.assert_close(branched[row, : len(path)], logits, atol=2e-4, rtol=1e-4)
            part = (logits.log_softmax(-1) * weights[row, : len(path)]).sum()
            part.backward()
            plain_loss += part.item()
            row += 1
    plain = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (gradient - plain).norm() / plain.norm() < 1e-5
    assert loss.item() == pytest.approx(plain_loss, rel=1e-5)
    model.zero_grad()


@torch.inference_mode()
def test_equal_prompts_are_read_once(model):
    """All but the last token, which gives the logits."""
    prompt = list(range(5, 45))
    read, prefix = tokens_read(model, lambda: trie.prefill(model, [prompt] * 6))
    assert read == 39 + 6
    alone = model(input_ids=torch.tensor([prompt])).logits[:, -1]
    torch.testing.assert_close(prefix.logits, alone.expand(6, -1), atol=1e-4, rtol=1e-4)


def test_a_fork_leaves_its_source_alone(model):
    with torch.inference_mode():
        prefix = trie.prefill(model, [list(range(5, 25))])
        before = [layer.keys.clone() for layer in prefix.cache.layers]
        rows = torch.zeros(3, dtype=torch.long)
        first, _ = trie.extend(model, prefix.fork(rows), torch.tensor([[7], [8], [9]]))
        second, _ = trie.extend(model, prefix.fork(rows), torch.tensor([[7], [8], [9]]))
    assert torch.equal(first.logits, second.logits) and prefix.mask.shape == (1, 20)
    assert all(
        torch.equal(a, layer.keys) for a, layer in zip(before, prefix.cache.layers, strict=True)
    )


# ------------------------------------------------------------------------------------------- the objectives


def test_soft_loss_is_zero_at_the_target_and_positive_elsewhere(small):
    tree, *_ = small
    batch = soft_batch(tree, range(3))
    perfect = torch.full((3, batch["completions"].shape[1], 260), -1e4)
    perfect.scatter_(-1, batch["tokens"], batch["q"].clamp(min=1e-30).log())
    assert train_soft.loss(perfect, batch).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    for seed in range(5):
        logits = torch.randn(perfect.shape, generator=torch.Generator().manual_seed(seed))
        assert train_soft.loss(logits, batch).mean() > 0.5


def test_mass_on_other_tokens_costs(small):
    """Half of a perfect model's mass moved to tokens outside the trie: log 2 at each prefix."""
    tree, *_ = small
    batch = soft_batch(tree, [0])
    logits = torch.full((1, batch["completions"].shape[1], 260), -1e4)
    logits.scatter_(-1, batch["tokens"], batch["q"].clamp(min=1e-30).log())
    logits[..., 259] = 0  # as much as all the children together
    assert train_soft.loss(logits, batch).item() == pytest.approx(math.log(2), rel=1e-5)


def test_hard_loss_in_expectation_is_entropy_plus_kl(small):
    """Over all answers, weighted by their probability: sum q (-log p) = H(q) + KL(q || p), per answer."""
    tree, *_ = small
    torch.manual_seed(0)
    by_prefix = defaultdict(lambda: torch.randn(260))
    cross_entropy = kl = 0.0
    for leaf in range(3):
        path = tree.path(leaf).tolist()
        logits = torch.stack([by_prefix[tuple(path[:i])] for i in range(len(path))])[None]
        loss = train_hard.loss(
            logits, train_hard.collate([{"path": tree.path(leaf)}])
        ).item() * len(path)
        log_p = sum(
            by_prefix[tuple(path[:i])].log_softmax(-1)[token].item() for i, token in enumerate(path)
        )
        cross_entropy += tree.probs[leaf] * loss
        kl += tree.probs[leaf] * (math.log(tree.probs[leaf]) - log_p)
    entropy = -sum(p * math.log(p) for p in PROBS)
    assert cross_entropy == pytest.approx(entropy + kl, rel=1e-6) and kl > 1


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_losses_ignore_padding(module, small):
    """An answer's loss is the same beside a longer one, whatever stands in the logits behind its end."""
    tree, *_ = small
    leaves = [i for length in (2, 3) for i in range(3) if tree.lengths[i] == length][
        1:
    ]  # "2", then "12"
    answers = [{"path": tree.path(leaf), "targets": tree.path_targets(leaf)} for leaf in leaves]
    logits = torch.randn(2, 3, 260, generator=torch.Generator().manual_seed(0))
    alone, batch = module.loss(logits[:1, :2], module.collate(answers[:1])), module.collate(answers)
    assert module.loss(logits, batch).shape == (2,)
    logits[0, 2] = 1e3 * logits[0, 1]
    assert module.loss(logits, batch)[0].item() == pytest.approx(alone.item())


# ------------------------------------------------------------------------------------------------- training


def drawn_and_trained(module, monkeypatch, *flags) -> tuple[list, list]:
    """A tiny training run's (prompt, answer) pairs: what `prepare` drew, and what went through the model, in order."""
    drawn, trained, asked = [], [], []
    prepare, prefill, branch = module.prepare, trie.prefill, trie.branch

    def spied_prepare(*args, **kwargs):
        example = prepare(*args, **kwargs)
        drawn.append(
            [(tuple(example["prompt"]), tuple(a["path"].tolist())) for a in example["answers"]]
        )
        return example

    def spied_prefill(model, prompts):
        asked.append(prompts)
        return prefill(model, prompts)

    def spied_branch(model, prefix, completions):
        prompts = [
            prompt for prompt in asked[-1] for _ in range(len(completions) // len(asked[-1]))
        ]
        for prompt, completion in zip(prompts, completions, strict=True):
            trained.append((tuple(prompt), tuple(completion[completion != trie.PAD].tolist())))
        return branch(model, prefix, completions)

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
    flags = (
        "--data",
        data / "train.jsonl",
        "--out",
        tmp_path / "out",
        "--limit",
        3,
        "--epochs",
        2,
        "--batch",
        10,
    )
    own = () if module is train_hard else ("--draws", draws)  # 16 is hard's own
    drawn, trained = drawn_and_trained(module, monkeypatch, *flags, *own, "--branches", branches)
    assert (
        len(drawn) == 3
        and len(trained) == 2 * 3 * draws
        and len({*drawn[0], *drawn[1], *drawn[2]}) > 4 * draws
    )
    for epoch in range(2):
        now = [pair for answers in drawn for pair in answers[epoch * draws : (epoch + 1) * draws]]
        assert Counter(trained[epoch * 3 * draws : (epoch + 1) * 3 * draws]) == Counter(now)


SCALES, RATE = (10, 10**6, 10**3), 1e-3


def plain_training(module, rows) -> tuple[dict, dict, list[float]]:
    """Steps as a textbook writes them: one row at a time, no cache, no library around the optimizer, nothing clipped.

    Returns LoRA's weights before and after, by the names that PEFT saves them under, and the norm of each gradient.
    """
    model, tokenizer, end = trie.load(TINY)
    model = trie.add_lora(model, seed=0)
    own = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in own.items()}
    examples = [
        module.prepare(tokenizer, end, row, len(SCALES), d.prompt_rng(0, row["id"])) for row in rows
    ]
    optimizer, norms = torch.optim.AdamW(own.values(), weight_decay=0.01), []
    for step, scale in enumerate(SCALES):
        answers = [(example["prompt"], example["answers"][step]) for example in examples]
        for prompt, answer in answers:
            path = answer["path"].tolist()
            logits = model(input_ids=torch.tensor([prompt + path])).logits[:, len(prompt) - 1 : -1]
            share = answer["weight"] / sum(other["weight"] for _, other in answers)
            (scale * share * module.loss(logits, module.collate([answer])).sum()).backward()
        norms.append(torch.cat([p.grad.flatten() for p in own.values()]).norm().item())
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / len(SCALES))) / 2
        optimizer.step()
        optimizer.zero_grad()
    return before, {name: p.detach() for name, p in own.items()}, norms


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_training_is_plain_adamw_without_clipping(module, data, tmp_path, monkeypatch):
    """AdamW forgets a gradient's size unless it changes from step to step, so the loss of each step has another scale.
    Without dropout, whose masks depend on how rows are laid out."""
    monkeypatch.setattr(
        trie, "LoraConfig", lambda **options: LoraConfig(**options | {"lora_dropout": 0.0})
    )
    rows = d.read_prompts([data / "train.jsonl"], limit=4)
    before, plain, norms = plain_training(module, rows)
    assert min(norms) > 0.1 and norms[1] > 1e5

    loss, scales = module.loss, iter(SCALES)
    monkeypatch.setattr(module, "loss", lambda logits, batch: loss(logits, batch) * next(scales))
    flags = ("--limit", 4, "--batch", 4, "--draws", 1, "--epochs", len(SCALES), "--lr", RATE)
    call(module, "--model", TINY, "--data", data / "train.jsonl", "--out", tmp_path / "out", *flags)
    trained = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert trained.keys() == plain.keys()
    moved = sum((plain[key] - before[key]).square().sum() for key in plain)
    apart = sum((plain[key] - trained[key]).square().sum() for key in plain)
    assert (apart / moved).sqrt() < 3e-4  # without weight decay: 6e-4


def test_the_answers_are_those_of_the_recipe(tokenizer, end):
    """Soft's 1001 bins, and answers that count alike; hard's 16384, and tokens that do."""
    assert (train_soft.BINS, train_hard.BINS) == (1001, 16384)
    row = next(row for row in d.make_rows("unseen") if row["family"] == "gaussian")
    for module, weight in ((train_soft, lambda path: 1), (train_hard, len)):
        answers = module.prepare(tokenizer, end, row, 50, np.random.default_rng(0))["answers"]
        assert len({len(answer["path"]) for answer in answers}) > 1
        assert all(answer["weight"] == weight(answer["path"]) for answer in answers)


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_the_seed_is_that_of_the_weights_of_the_draws_and_of_the_order(module, data, tmp_path):
    seeds, found, lora = [], [], trie.add_lora
    flags = (
        "--data",
        data / "train.jsonl",
        "--limit",
        12,
        "--epochs",
        1,
        "--draws",
        1,
        "--batch",
        4,
    )
    for seed in (0, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                trie, "add_lora", lambda model, seed: seeds.append(seed) or lora(model, seed)
            )
            found.append(
                drawn_and_trained(
                    module, patch, *flags, "--out", tmp_path / str(seed), "--seed", seed
                )
            )
    (drawn, trained), (other_drawn, other_trained) = found
    assert seeds == [0, 1] and drawn != other_drawn
    assert [prompt for prompt, _ in trained] != [prompt for prompt, _ in other_trained]


def test_lora_drops_and_is_float32_beside_a_model_that_is_not():
    model = trie.add_lora(trie.load(TINY)[0].bfloat16(), 0)
    drops = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert drops and all(module.training and module.p == 0.05 for module in drops)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in model.parameters()}


def test_a_model_is_its_weights_its_tokens_and_its_template(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"):
        folder = shutil.copytree(TINY, tmp_path / name)
        assert trie.identity(str(folder)) == trie.identity(TINY)
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
        assert trie.identity(str(folder)) != trie.identity(TINY)


def test_lora_starts_from_the_seed(model):
    def start(seed):
        lora = trie.add_lora(trie.load(TINY)[0], seed)
        return {name: p.detach().clone() for name, p in lora.named_parameters() if p.requires_grad}

    one, two, other = start(3), start(3), start(4)
    assert len(one) == model.config.num_hidden_layers * 4 * 2 and all(
        torch.equal(one[key], two[key]) for key in one
    )
    assert all((one[key] == 0).all() for key in one if "lora_B" in key)
    assert not any(torch.equal(one[key], other[key]) for key in one if "lora_A" in key)


def test_two_trainings_alike_give_the_same_bytes(adapters, data, tmp_path):
    """Also in another process, where Python orders its sets otherwise."""
    flags = ("--model", TINY, "--data", data / "train.jsonl", "--out", tmp_path / "soft", *BRIEF)
    arguments = [sys.executable, str(ROOT / "train_soft.py"), *map(str, flags)]
    subprocess.run(arguments, env=ENV | {"PYTHONHASHSEED": "1"}, check=True, capture_output=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "soft" / name).read_bytes() == (adapters["soft"] / name).read_bytes()
    modules = json.loads((tmp_path / "soft" / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules)  # two processes may agree by chance


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_a_loss_that_is_not_finite_stops_with_nothing_saved(module, data, tmp_path):
    flags = ("--data", data / "train.jsonl", "--limit", 4, "--batch", 4, "--lr", 1e30)
    flags += ("--branches", 16) if module is train_hard else ()
    line = complaint(module, "--model", TINY, "--out", tmp_path / "out", *flags)
    assert "the loss of step 2 is not finite" in line
    assert (
        not list((tmp_path / "out").glob("adapter*"))
        and len(d.read_rows([tmp_path / "out" / "log.jsonl"])) == 1
    )


def test_a_model_with_missing_weights_is_refused(tmp_path):
    broken = shutil.copytree(TINY, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        d.InputError, match=r"broken' lacks .*model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        trie.load(str(broken))
