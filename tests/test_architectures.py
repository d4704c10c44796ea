"""The classes that the paper's twelve models load as: the whole chain runs on small models of each.

Their weights are random; everything else is real.
"""

import json
import os
from pathlib import Path

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

LAYERS = 3
WINDOW = 16  # tokens that a sliding layer sees
SIZE = {
    "vocab_size": 1536,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
SLIDING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
IMAGES = {
    "mm_tokens_per_image": 4,
    "image_token_index": 1500,
    "boi_token_index": 1501,
    "eoi_token_index": 1502,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def gemma3_with_vision() -> Gemma3Config:
    return Gemma3Config(text_config=SIZE | SLIDING, vision_config=VISION, **IMAGES)


def gpt_oss() -> GptOssConfig:
    return GptOssConfig(**SIZE, **SLIDING, **EXPERTS)


MODELS = {  # name -> the style of its tokenizer, its class, its config
    "qwen3": ("qwen", Qwen3ForCausalLM, lambda: Qwen3Config(**SIZE)),
    "llama": ("llama", LlamaForCausalLM, lambda: LlamaConfig(**SIZE)),
    "gemma3": ("gemma", Gemma3ForCausalLM, lambda: Gemma3TextConfig(**SIZE, **SLIDING)),
    "gemma3 with vision": ("gemma", Gemma3ForConditionalGeneration, gemma3_with_vision),
    "gpt-oss": ("harmony", GptOssForCausalLM, gpt_oss),
}
SLIDES = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "GptOssForCausalLM")


def save(name: str, folder: Path) -> None:
    """Save a random model with its tokenizer."""
    style, architecture, config = MODELS[name]
    torch.manual_seed(0)
    architecture(config()).save_pretrained(folder)
    build(style).save_pretrained(folder)


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory) -> Path:
    """The folder of a random model, which has the name of its class."""
    architecture = MODELS[request.param][1]
    folder = tmp_path_factory.mktemp("model") / architecture.__name__
    save(request.param, folder)
    return folder


@pytest.mark.parametrize("method, draws", [("soft", 2), ("hard", 16)])
def test_train_and_draw(folder, data, tmp_path, method, draws):
    """Two training steps; then the adapter is loaded again, for draws and the logit KL."""
    flags = ("--model", folder, "--epochs", 1, "--lr", 1e-2, "--limit", 4, "--batch", 2)
    flags += ("--draws", draws, "--branches", draws)
    adapter = train(method, tmp_path / method, data, *flags)
    assert len(read_rows([adapter / "log.jsonl"])) == 2

    # LoRA lies on q, k, v and o of the language model alone.
    weights = load_file(adapter / "adapter_model.safetensors")
    layers = [key for key in weights if "lora_A" in key]
    assert len(layers) == LAYERS * 4
    projections = set()
    for key in layers:
        assert "vision" not in key
        *_, module, projection, _, _ = key.split(".")
        assert module == "self_attn"
        projections.add(projection)
    assert projections == {"q_proj", "k_proj", "v_proj", "o_proj"}

    # Loading would raise an error if the adapter did not change the logits.
    write_text(tmp_path / "prompts.jsonl", to_jsonl(read_rows([data / "ood.jsonl"])[4:6]))
    out = tmp_path / f"{method}.jsonl"
    flags = ("--model", folder, "--adapter", adapter, "--prompts", tmp_path / "prompts.jsonl")
    call(sample, "numbers", *flags, "--n", 20, "--out", out)
    rows = read_rows([out])
    assert [len(row["draws"]) for row in rows] == [20, 20]
    for row in rows:
        assert row["logit_kl"] > row["logit_kl_floor"] - 1e-6
        assert row["logit_kl"] > row["logit_kl_form"] > 0


def test_long_answers_are_drawn(folder, tmp_path):
    out = tmp_path / "mcq.jsonl"
    call(sample, "mcq", "--model", folder, "--n", 10, "--max-tokens", 20, "--out", out)
    (row,) = read_rows([out])
    assert len(row["draws"]) == 10
    assert len(set(row["draws"])) > 3


def test_shared_passes_equal_separate_rows(folder):
    """Logits, loss and gradient of three prompts with two completions each.

    They are compared with those of each prompt and completion alone, without a cache. All prompts
    begin with the same words, and two are far longer than a sliding window.
    """
    model, tokenizer, end = trie.load(str(folder))
    prompts = [trie.chat_ids(tokenizer, "Gaussian " * n) for n in (25, 2, 30)]
    assert len(prompts[0]) > 3 * WINDOW
    texts = ["1.25000", "-3.5", "7", "0.1", "12.75000", "3"]
    completions = torch.from_numpy(trie.encode(tokenizer, texts, end)).long()
    real = completions != trie.PAD
    unused = ("vision", "projector")  # of images
    trained = []
    for name, parameter in model.named_parameters():
        if not any(word in name for word in unused):
            trained.append(parameter)

    def gradient() -> torch.Tensor:
        """The gradient of all parameters, (P,), which is then reset."""
        parts = []
        for parameter in trained:
            part = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parts.append(part.flatten())
        model.zero_grad()
        return torch.cat(parts)

    logits = trie.branch(model, trie.prefill(model, prompts), completions)
    loss = torch.nn.functional.cross_entropy(logits[real], completions[real])
    loss.backward()
    branched = gradient()

    rows = []
    total = 0.0
    for i, completion in enumerate(completions):
        prompt, path = prompts[i // 2], completion[real[i]]
        output = model(input_ids=torch.tensor([prompt + path.tolist()]))
        row = output.logits[0, len(prompt) - 1 : -1]
        part = torch.nn.functional.cross_entropy(row, path, reduction="sum") / real.sum()
        part.backward()
        total += part.item()
        rows.append(row.detach())
    expected = torch.cat(rows)
    separate = gradient()

    assert (logits[real] - expected).norm() < 1e-5 * expected.norm()
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert separate.norm() > 0
    assert (branched - separate).norm() < 1e-5 * separate.norm()


def test_the_common_beginning_of_prompts_is_read_once(folder):
    """Unless a layer has a sliding window: then each prompt is read whole."""
    model, tokenizer, _ = trie.load(str(folder))
    prompts = [trie.chat_ids(tokenizer, "Gaussian " * n) for n in (25, 2, 30)]
    common = len(os.path.commonprefix(prompts))
    assert common >= 3
    window = model.config.get_text_config().to_dict().get("sliding_window")
    assert bool(window) == (folder.name in SLIDES)

    shapes = []

    def keep_shape(module, args, kwargs):
        shapes.append(kwargs["input_ids"].shape)

    hook = model.register_forward_pre_hook(keep_shape, with_kwargs=True)
    with torch.inference_mode():
        trie.prefill(model, prompts)
    hook.remove()
    shared = 0 if window else common
    longest = max(len(prompt) for prompt in prompts)
    assert sum(rows * tokens for rows, tokens in shapes) == shared + 3 * (longest - shared)


def test_the_walk_is_plain_sampling(folder):
    """Two prompts walk together, one longer than a window; each token has a full pass beside it."""
    model, tokenizer, end = trie.load(str(folder))
    prompts = [trie.chat_ids(tokenizer, "Gaussian " * n) for n in (25, 2)]
    uniform = np.random.default_rng(0).random((2 * 5, 6))
    paths = trie.walk(model, prompts, [end], uniform, at_once=7)
    for i, (numbers, path) in enumerate(zip(uniform, paths, strict=True)):
        ids = list(prompts[i // 5])
        for number, token in zip(numbers, path, strict=False):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            cdf = logits.double().softmax(-1).cumsum(0).numpy()
            assert np.searchsorted(cdf, number * cdf[-1], "right") == token
            ids.append(token)
        assert len(path) == 6 or path[-1] == end


def test_four_bit_experts_become_trainable(tmp_path, monkeypatch):
    """gpt-oss has its experts in mxfp4; they load as ordinary weights, in the model's dtype."""
    save("gpt-oss", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for key in list(weights):
        if key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = weights.pop(key).shape
            blocks = (experts, outputs, inputs // 32, 16)  # 32 codes in 16 bytes
            weights[f"{key}_blocks"] = torch.full(blocks, 0x22, dtype=torch.uint8)
            weights[f"{key}_scales"] = torch.full(blocks[:3], 126, dtype=torch.uint8)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(config))

    asked = []
    from_pretrained = trie.AutoModelForCausalLM.from_pretrained

    def spy(name, **options):
        asked.append(options)
        return from_pretrained(name, **options)

    monkeypatch.setattr(trie.AutoModelForCausalLM, "from_pretrained", spy)
    model, _, end = trie.load(str(tmp_path))
    assert end == model.generation_config.eos_token_id[0]
    experts = model.model.layers[0].mlp.experts.gate_up_proj
    assert experts.shape == (4, 64, 128)
    assert experts.dtype == torch.float32
    assert (experts == 0.5).all()  # the e2m1 code 2 is 1, times 2^(126 - 127)

    # A GPU with four-bit kernels would otherwise keep what cannot be trained.
    (options,) = asked
    assert options["quantization_config"].dequantize
