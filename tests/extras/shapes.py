"""The shapes of the paper's twelve models, and the memory they need, computed from these shapes.

    python tests/extras/speed.py --memory            # print the table
    python tests/extras/speed.py --shape qwen3-0.6b  # measure a model of a shape, random weights

This file is a library for speed.py and has no command of its own. It loads no weights and runs no
model.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

sys.path.insert(0, str(Path(__file__).parents[2]))
import metrics

PROMPT = 45  # tokens of a number prompt, as Qwen3's tokenizer cuts it
ANSWER = 11  # tokens of the longest numbers, one for each digit
BATCH = 32  # prompts in a training step
ROWS = 1024  # draws that walk at once
RANK = 16  # of the LoRA matrices


class Shape(NamedTuple):
    """The sizes of a transformer."""

    config: Callable[..., PretrainedConfig]
    vocabulary: int
    width: int  # of the residual stream
    layers: int
    heads: int  # of the queries
    groups: int  # heads of the keys and values
    head: int  # the size of one head
    forward: int  # width of the feed-forward network, or of one of its experts
    tied: bool  # whether input and output embeddings are the same matrix


def gpt_oss_config(**sizes) -> GptOssConfig:
    return GptOssConfig(num_local_experts=32, **sizes)


SHAPES = {
    # vocabulary, width, layers, heads, groups, head, forward, tied
    "qwen3-0.6b":   Shape(Qwen3Config,      151936, 1024, 28, 16,  8, 128,  3072, True),
    "qwen3-1.7b":   Shape(Qwen3Config,      151936, 2048, 28, 16,  8, 128,  6144, True),
    "qwen3-4b":     Shape(Qwen3Config,      151936, 2560, 36, 32,  8, 128,  9728, True),
    "qwen3-8b":     Shape(Qwen3Config,      151936, 4096, 36, 32,  8, 128, 12288, False),
    "qwen3-14b":    Shape(Qwen3Config,      151936, 5120, 40, 40,  8, 128, 17408, False),
    "llama-3.2-1b": Shape(LlamaConfig,      128256, 2048, 16, 32,  8,  64,  8192, True),
    "llama-3.2-3b": Shape(LlamaConfig,      128256, 3072, 28, 24,  8, 128,  8192, True),
    "gemma-3-1b":   Shape(Gemma3TextConfig, 262144, 1152, 26,  4,  1, 256,  6912, True),
    "gemma-3-4b":   Shape(Gemma3TextConfig, 262208, 2560, 34,  8,  4, 256, 10240, True),
    "gemma-3-12b":  Shape(Gemma3TextConfig, 262208, 3840, 48, 16,  8, 256, 15360, True),
    "gemma-3-27b":  Shape(Gemma3TextConfig, 262208, 5376, 62, 32, 16, 128, 21504, True),
    "gpt-oss-20b":  Shape(gpt_oss_config,   201088, 2880, 24, 64,  8,  64,  2880, False),
}  # fmt: skip


def shape_config(name: str) -> PretrainedConfig:
    """The transformers config of a shape."""
    shape = SHAPES[name]
    return shape.config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        head_dim=shape.head,
        intermediate_size=shape.forward,
        tie_word_embeddings=shape.tied,
    )


def memory(name: str) -> dict:
    """What a model needs, in GB of 10^9 bytes. It is computed from the shape, not measured.

    weights     in bfloat16; for gpt-oss, with its experts dequantized
    adapter     LoRA of rank 16 on q, k, v and o: its weights, their gradients and AdamW's two
                moments, in float32
    soft, hard  a training step of 32 prompts, with 1 path or with 16 draws for each: what the
                backward pass needs of each token and layer; and the logits in bfloat16, in
                float32, and their gradients in both
    draws       1024 rows at once: the keys and values of prompts and answers, and beside them
                whichever is larger, a second copy of these (rows fork into it) or the logits in
                bfloat16 and twice in float64
    """
    config = shape_config(name)
    shape = SHAPES[name]
    layers, width = shape.layers, shape.width
    query_width = shape.heads * shape.head
    key_width = shape.groups * shape.head
    experts = getattr(config, "num_experts_per_tok", 1)

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = 2 * sum(parameter.numel() for parameter in model.parameters())

    # LoRA lies between the widths that a projection joins: q and o, then k and v.
    lora = RANK * layers * (2 * (width + query_width) + 2 * (width + key_width))
    adapter = 4 * 4 * lora  # weight, gradient and two moments, of four bytes each

    # What the backward pass needs of each token in each layer, in bytes. In bfloat16: the residual
    # stream and two norms (each keeps a vector in float32, which counts twice, and its output),
    # which make 8 widths; attention; and four vectors of the feed-forward network.
    kept = 2 * (8 * width + 3 * query_width + 2 * key_width + 4 * experts * shape.forward)
    # LoRA keeps of its inputs (of q, k and v: width; of o: query_width) a copy in float32, what
    # dropout leaves of that copy, and the mask in one byte.
    kept += (4 + 4 + 1) * (3 * width + query_width)

    keys_and_values = 2 * layers * key_width * (PROMPT + ANSWER)
    cache = 2 * keys_and_values  # bytes of a row in bfloat16

    def step(branches: int) -> int:
        tokens = BATCH * (PROMPT + branches * ANSWER)
        logits = BATCH * branches * ANSWER * shape.vocabulary
        copies = BATCH * branches * cache if branches > 1 else 0  # of a prompt, one for each branch
        return weights + adapter + layers * kept * tokens + copies + (2 + 4 + 4 + 2) * logits

    row_logits = (2 + 8 + 8) * shape.vocabulary
    needs = {
        "weights": weights,
        "adapter": adapter,
        "soft": step(1),
        "hard, 16 draws": step(16),
        "draws": weights + ROWS * (cache + max(cache, row_logits)),
    }
    return {"model": name} | {key: value / 1e9 for key, value in needs.items()}


def memory_table() -> list[str]:
    """The lines of a Markdown table: what each of the models needs, in GB."""
    needs = [memory(name) for name in SHAPES]
    columns = [("model", *SHAPES)]
    for heading in needs[0]:
        if heading != "model":
            columns.append((heading, *(f"{need[heading]:.1f}" for need in needs)))
    return metrics.markdown(columns)
