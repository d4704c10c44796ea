"""The classes that the twelve models load as, small and random but real: the whole chain runs on each."""

import json

import pytest
import torch
from conftest import ROOT, build, call, train
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
from distributions import read_jsonl, write_jsonl

SIZE = {
    "vocab_size": 1536, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
EYES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
IMAGES = {"mm_tokens_per_image": 4, "image_token_index": 1500, "boi_token_index": 1501, "eoi_token_index": 1502}
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
    write_jsonl(tmp_path / "prompts.jsonl", read_jsonl(data / "ood.jsonl")[4:6])
    brief = ("--model", folder, "--data", data / "train.jsonl", "--epochs", 1, "--lr", 1e-2)
    for method, limit, branches in (("soft", 4, 2), ("hard", 4, 16)):
        out = train(method, tmp_path / method, data, *brief, "--limit", limit, "--batch", 2, "--branches", branches)
        assert len(read_jsonl(out / "log.jsonl")) == 2
        layers = [key for key in load_file(out / "adapter_model.safetensors") if "lora_A" in key]
        assert len(layers) == 3 * 4 and not any("vision" in key for key in layers)
        assert all(key.split(".")[-4:-2] == ["self_attn", key.split(".")[-3]] for key in layers)
        # Loading says so if the adapter does not change the logits.
        flags = ("numbers", "--model", folder, "--adapter", out, "--prompts", tmp_path / "prompts.jsonl", "--n", 20)
        call(sample, *flags, "--out", tmp_path / f"{method}.jsonl")
        rows = read_jsonl(tmp_path / f"{method}.jsonl")
        assert [sum(row["draws"].values()) for row in rows] == [20, 20]
        assert all(row["logit_kl"] > row["logit_kl_floor"] - 1e-6 for row in rows)
    call(sample, "mcq", "--model", folder, "--n", 3, "--max-tokens", 20, "--out", tmp_path / "mcq.jsonl")
    assert len({row["text"] for row in read_jsonl(tmp_path / "mcq.jsonl")}) == 3


def test_branches_equal_whole_rows(folder):
    """Loss and gradient of two left-padded prompts with three completions each, one prompt far longer than the
    sliding window; with a cache, without one, and with gradient checkpointing."""
    model = trie.load_model(str(folder)).train()
    tokenizer = trie.load_tokenizer(str(folder))
    prompts = [trie.chat_ids(tokenizer, "Gaussian " * n) for n in (2, 30)]
    assert len(prompts[1]) > 3 * 16
    end = trie.end_token(tokenizer)
    completions = trie.encode(tokenizer, ["1.25000", "-3.5", "7", "0.1", "12.75000", "3"], end)
    completions = torch.from_numpy(completions).long()
    losses, gradients = [], []
    for how in ("branches", "whole rows", "checkpoints"):
        if how == "checkpoints":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if how == "branches":
            logits = trie.branch(model, trie.prefill(model, prompts), completions)
        else:
            logits = trie.complete(model, prompts, completions)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), completions.flatten(), ignore_index=trie.PAD)
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    one_by_one = []
    for row, completion in enumerate(completions):
        ids = prompts[row // 3] + completion[completion != trie.PAD].tolist()
        with torch.no_grad():
            log_probs = model.eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        at = range(len(prompts[row // 3]), len(ids))
        one_by_one += [-log_probs[t - 1, ids[t]].item() for t in at]
    assert losses == pytest.approx([sum(one_by_one) / len(one_by_one)] * 3, rel=1e-5)
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() < 2e-6 * gradient.norm()


def test_four_bit_experts_are_made_trainable(tmp_path, monkeypatch):
    """gpt-oss comes with its experts in mxfp4: it loads as ordinary weights, of the dtype of everything else."""
    style, architecture, config = MODELS["gpt-oss"]
    architecture(config()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for key in [key for key in weights if key.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = weights.pop(key).shape
        weights[f"{key}_blocks"] = torch.full((experts, outputs, inputs // 32, 16), 0x22, dtype=torch.uint8)
        weights[f"{key}_scales"] = torch.full((experts, outputs, inputs // 32), 126, dtype=torch.uint8)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    record = json.loads((tmp_path / "config.json").read_text())
    record["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(record))
    asked, load = [], trie.AutoModelForCausalLM.from_pretrained
    spy = lambda name, **options: asked.append(options) or load(name, **options)
    monkeypatch.setattr(trie.AutoModelForCausalLM, "from_pretrained", spy)
    model = trie.load_model(str(tmp_path))
    experts = model.model.layers[0].mlp.experts.gate_up_proj
    assert experts.shape == (4, 64, 128) and experts.dtype == torch.float32
    assert (experts == 0.5).all()  # e2m1 code 2 is 1, times 2^(126 - 127)
    (options,) = asked
    assert options["quantization_config"].dequantize  # or a GPU with four-bit kernels would keep what cannot be trained


def test_the_readme_s_memory_table_is_the_computed_one():
    import bench

    page = (ROOT / "README.md").read_text().split("<!-- memory -->")[1].split("<!-- /memory -->")[0]
    assert page.strip() == "\n".join(bench.memory_table())
    assert bench.memory("qwen3-0.6b")["weights"] == pytest.approx(2 * 0.596, rel=0.01)  # 596 M parameters, by its card


def test_every_stage_can_be_measured():
    import bench

    config = Qwen3Config(**SIZE, tie_word_embeddings=True)
    rows = bench.stages(config, rounds=1)
    assert [row["name"] for row in rows] == ["soft", "hard", "hard, 16 branches", "1000 draws", "logit KL of 128 paths"]
    assert all(row["ratio_to_floor"] > 0.3 and row["tokens_per_second"] > 0 for row in rows)
