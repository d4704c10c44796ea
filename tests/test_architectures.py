"""The classes that the twelve models load as, small and random but real: the whole chain runs on each."""

import json
import os

import numpy as np
import pytest
import torch
from conftest import build, call, train
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import sample
import trie
from distributions import read_rows, to_jsonl, write_text

SIZE = {
    "vocab_size": 1536, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
WINDOW = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
EYES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
IMAGES = {
    "mm_tokens_per_image": 4,
    "image_token_index": 1500,
    "boi_token_index": 1501,
    "eoi_token_index": 1502,
}
MODELS = {  # name -> (its tokenizer's style, class, config)
    "qwen3": ("qwen", Qwen3ForCausalLM, lambda: Qwen3Config(**SIZE)),
    "llama": ("llama", LlamaForCausalLM, lambda: LlamaConfig(**SIZE)),
    "gemma3": ("gemma", Gemma3ForCausalLM, lambda: Gemma3TextConfig(**SIZE, **WINDOW)),
    "gemma3 with eyes": (
        "gemma", Gemma3ForConditionalGeneration,
        lambda: Gemma3Config(text_config=SIZE | WINDOW, vision_config=EYES, **IMAGES),
    ),
    "gpt-oss": (
        "harmony", GptOssForCausalLM,
        lambda: GptOssConfig(**SIZE, **WINDOW, num_local_experts=4, num_experts_per_tok=2),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    style, architecture, config = MODELS[request.param]
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / architecture.__name__
    architecture(config()).save_pretrained(folder)
    build(style).save_pretrained(folder)
    return folder


def test_the_whole_chain(folder, data, tmp_path):
    """Two steps of soft and of hard, the adapter reloaded, draws and logit KL; LoRA on the language model's q/k/v/o."""
    write_text(tmp_path / "prompts.jsonl", to_jsonl(read_rows([data / "ood.jsonl"])[4:6]))
    brief = ("--model", folder, "--data", data / "train.jsonl", "--epochs", 1, "--lr", 1e-2)
    for method, draws in (("soft", 2), ("hard", 16)):
        own = ("--limit", 4, "--batch", 2, "--draws", draws, "--branches", draws)
        out = train(method, tmp_path / method, data, *brief, *own)
        assert len(read_rows([out / "log.jsonl"])) == 2
        layers = [key for key in load_file(out / "adapter_model.safetensors") if "lora_A" in key]
        assert len(layers) == 3 * 4 and not any("vision" in key for key in layers)
        assert all(key.split(".")[-4:-2] == ["self_attn", key.split(".")[-3]] for key in layers)
        # Loading says so if the adapter does not change the logits.
        flags = (
            "numbers",
            "--model",
            folder,
            "--adapter",
            out,
            "--prompts",
            tmp_path / "prompts.jsonl",
            "--n",
            20,
        )
        call(sample, *flags, "--out", tmp_path / f"{method}.jsonl")
        rows = read_rows([tmp_path / f"{method}.jsonl"])
        assert [len(row["draws"]) for row in rows] == [20, 20]
        assert all(row["logit_kl"] > row["logit_kl_floor"] - 1e-6 for row in rows)
        assert all(row["logit_kl"] > row["logit_kl_form"] > 0 for row in rows)
    call(
        sample,
        "mcq",
        "--model",
        folder,
        "--n",
        10,
        "--max-tokens",
        20,
        "--out",
        tmp_path / "mcq.jsonl",
    )
    (row,) = read_rows([tmp_path / "mcq.jsonl"])
    assert len(row["draws"]) == 10 and len(set(row["draws"])) > 3


def test_one_prompt_pass_equals_separate_rows(folder):
    """Logits, loss and gradient of three prompts with two completions each, against each prompt and completion alone,
    without a cache. All begin with the same words, which are read once where no layer slides its window; two are far
    longer than the window."""
    model, tokenizer, end = trie.load(str(folder))
    prompts = [trie.chat_ids(tokenizer, "Gaussian " * n) for n in (25, 2, 30)]
    assert len(prompts[0]) > 3 * 16
    shared = len(os.path.commonprefix(prompts))
    slides = model.config.get_text_config().to_dict().get("sliding_window")
    assert shared >= 3 and bool(slides) == (
        "Llama" not in folder.name and "Qwen" not in folder.name
    )
    completions = trie.encode(tokenizer, ["1.25000", "-3.5", "7", "0.1", "12.75000", "3"], end)
    completions = torch.from_numpy(completions).long()
    real = completions != trie.PAD
    trained = [
        p
        for name, p in model.named_parameters()
        if "vision" not in name and "projector" not in name
    ]

    def gradient() -> torch.Tensor:
        flat = torch.cat(
            [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in trained]
        )
        model.zero_grad()
        return flat

    read = []
    hook = model.register_forward_pre_hook(
        lambda m, args, kw: read.append(kw["input_ids"].shape), with_kwargs=True
    )
    prefix = trie.prefill(model, prompts)
    hook.remove()
    head = 0 if slides else shared
    assert sum(rows * tokens for rows, tokens in read) == head + 3 * max(
        len(p) - head for p in prompts
    )

    logits = trie.branch(model, prefix, completions)
    loss = torch.nn.functional.cross_entropy(logits[real], completions[real])
    loss.backward()
    branched = gradient()

    plain, total = [], 0.0
    for row, completion in enumerate(completions):
        path, prompt = completion[real[row]], prompts[row // 2]
        alone = model(input_ids=torch.tensor([prompt + path.tolist()])).logits[
            0, len(prompt) - 1 : -1
        ]
        part = torch.nn.functional.cross_entropy(alone, path, reduction="sum") / real.sum()
        part.backward()
        total += part.item()
        plain.append(alone.detach())
    plain = torch.cat(plain)
    assert (logits[real] - plain).norm() < 1e-5 * plain.norm()
    assert loss.item() == pytest.approx(total, rel=1e-5)
    separate = gradient()
    assert separate.norm() > 0 and (branched - separate).norm() < 1e-5 * separate.norm()


def test_the_walk_is_plain_sampling(folder):
    """Prompts of different lengths together, some longer than a window, against a full forward pass for each token."""
    model, tokenizer, end = trie.load(str(folder))
    prompts = [trie.chat_ids(tokenizer, "Gaussian " * n) for n in (25, 2)]
    uniform = np.random.default_rng(0).random((2 * 5, 6))
    paths = trie.walk(model, prompts, [end], uniform, rows=7)
    for i, (numbers, path) in enumerate(zip(uniform, paths, strict=True)):
        ids = list(prompts[i // 5])
        for u, token in zip(numbers, path, strict=False):
            with torch.inference_mode():
                cdf = (
                    model(input_ids=torch.tensor([ids]))
                    .logits[0, -1]
                    .double()
                    .softmax(-1)
                    .cumsum(0)
                    .numpy()
                )
            assert np.searchsorted(cdf, u * cdf[-1], "right") == token
            ids.append(token)
        assert len(path) == 6 or path[-1] == end


def test_four_bit_experts_are_made_trainable(tmp_path, monkeypatch):
    """gpt-oss comes with its experts in mxfp4: it loads as ordinary weights, of the dtype of everything else."""
    style, architecture, config = MODELS["gpt-oss"]
    architecture(config()).save_pretrained(tmp_path)
    build(style).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for key in [
        key for key in weights if key.endswith(("experts.gate_up_proj", "experts.down_proj"))
    ]:
        experts, inputs, outputs = weights.pop(key).shape
        weights[f"{key}_blocks"] = torch.full(
            (experts, outputs, inputs // 32, 16), 0x22, dtype=torch.uint8
        )
        weights[f"{key}_scales"] = torch.full(
            (experts, outputs, inputs // 32), 126, dtype=torch.uint8
        )
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    record = json.loads((tmp_path / "config.json").read_text())
    record["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(record))
    asked, load = [], trie.AutoModelForCausalLM.from_pretrained
    spy = lambda name, **options: asked.append(options) or load(name, **options)
    monkeypatch.setattr(trie.AutoModelForCausalLM, "from_pretrained", spy)
    model, _, end = trie.load(str(tmp_path))
    assert end == model.generation_config.eos_token_id[0]
    experts = model.model.layers[0].mlp.experts.gate_up_proj
    assert experts.shape == (4, 64, 128) and experts.dtype == torch.float32
    assert (experts == 0.5).all()  # e2m1 code 2 is 1, times 2^(126 - 127)
    (options,) = asked
    assert options[
        "quantization_config"
    ].dequantize  # or a GPU with four-bit kernels would keep what cannot be trained
