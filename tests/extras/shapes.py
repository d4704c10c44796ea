"""The shapes of the paper's twelve models, and what memory they need, computed from these.

    python tests/extras/speed.py --memory            # the table
    python tests/extras/speed.py --shape qwen3-0.6b  # time and memory of a random model of a shape, measured

What this file does not do: load or run a model. It is a library of speed.py; it has no command.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    Qwen3Config,
)

sys.path.insert(0, str(Path(__file__).parents[2]))
from metrics import markdown

PROMPT, ANSWER = (
    45,
    11,
)  # tokens of a number prompt, as Qwen3's are, and of the longest numbers, one for each digit
SHAPES = {  # vocabulary, width, layers, heads, key-value heads, head size, feed-forward width, tied embeddings
    "qwen3-0.6b": (Qwen3Config, 151936, 1024, 28, 16, 8, 128, 3072, True),
    "qwen3-1.7b": (Qwen3Config, 151936, 2048, 28, 16, 8, 128, 6144, True),
    "qwen3-4b": (Qwen3Config, 151936, 2560, 36, 32, 8, 128, 9728, True),
    "qwen3-8b": (Qwen3Config, 151936, 4096, 36, 32, 8, 128, 12288, False),
    "qwen3-14b": (Qwen3Config, 151936, 5120, 40, 40, 8, 128, 17408, False),
    "llama-3.2-1b": (LlamaConfig, 128256, 2048, 16, 32, 8, 64, 8192, True),
    "llama-3.2-3b": (LlamaConfig, 128256, 3072, 28, 24, 8, 128, 8192, True),
    "gemma-3-1b": (Gemma3TextConfig, 262144, 1152, 26, 4, 1, 256, 6912, True),
    "gemma-3-4b": (Gemma3TextConfig, 262208, 2560, 34, 8, 4, 256, 10240, True),
    "gemma-3-12b": (Gemma3TextConfig, 262208, 3840, 48, 16, 8, 256, 15360, True),
    "gemma-3-27b": (Gemma3TextConfig, 262208, 5376, 62, 32, 16, 128, 21504, True),
    "gpt-oss-20b": (
        partial(GptOssConfig, num_local_experts=32),
        201088,
        2880,
        24,
        64,
        8,
        64,
        2880,
        False,
    ),
}


def shape_config(name: str):
    config, vocabulary, width, layers, heads, groups, head, forward, tied = SHAPES[name]
    return config(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, head_dim=head, intermediate_size=forward, tie_word_embeddings=tied,
    )  # fmt: skip


def memory(name: str) -> dict:
    """What a model needs, in GB of 10^9 bytes: computed from its shape, not measured.

    weights     bfloat16; of gpt-oss with its experts dequantized
    adapter     LoRA r 16 on q/k/v/o: weights, gradients and AdamW's two moments in float32
    soft, hard  one step of 32 prompts with 1 path, or with 16 draws each: what the backward pass needs of each token
                and layer, and its logits in bfloat16, float32 and as a gradient
    draws       1024 rows at a time (--rows): keys and values of prompt and answer, and with these the larger of a second
                copy, into which rows fork, and logits in bfloat16 and twice in float64
    """
    config = shape_config(name)
    _, vocabulary, width, layers, heads, groups, head, forward, _ = SHAPES[name]
    with torch.device("meta"):
        weights = 2 * sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    adapter = 16 * 4 * 4 * layers * (2 * (width + heads * head) + 2 * (width + groups * head))
    experts = getattr(config, "num_experts_per_tok", 1)

    # Bytes of a token and layer. Two norms in float32 beside their outputs, the residual stream, attention, the
    # feed-forward's four vectors; LoRA's float32 copy of its four inputs, what dropout leaves of it, and the mask.
    kept = 2 * (8 * width + 3 * heads * head + 2 * groups * head + 4 * experts * forward)
    kept += 9 * (3 * width + heads * head)
    cache = 2 * 2 * layers * groups * head * (PROMPT + ANSWER)  # keys and values of a row

    def step(branches: int) -> int:
        tokens, logits = 32 * (PROMPT + branches * ANSWER), 32 * branches * ANSWER * vocabulary
        copies = 32 * branches * cache if branches > 1 else 0  # each branch has its prompt's
        return weights + adapter + layers * kept * tokens + copies + (2 + 4 + 4 + 2) * logits

    draws = weights + 1024 * (cache + max(cache, (2 + 8 + 8) * vocabulary))
    needs = {
        "weights": weights,
        "adapter": adapter,
        "soft": step(1),
        "hard, 16 draws": step(16),
        "draws": draws,
    }
    return {"model": name} | {key: value / 1e9 for key, value in needs.items()}


def memory_table() -> list[str]:
    rows = [memory(name) for name in SHAPES]
    return markdown(
        (key, *(row[key] if key == "model" else f"{row[key]:.1f}" for row in rows))
        for key in rows[0]
    )
