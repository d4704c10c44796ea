"""Shared pieces: the embedded model, tokenizers of five styles, and a way to run a script as a user would."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: no test may wait for a network

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).parent.parent
TINY = str(Path(__file__).parent / "tiny")
FILES = ("distributions.py", "trie.py", "train_soft.py", "train_hard.py", "sample.py", "metrics.py")
sys.path.insert(0, str(ROOT))

import train_hard
import train_soft
import trie
from distributions import read_rows, run, to_jsonl, write_text

torch.set_num_threads(1)  # as in the scripts' own runs below: the same sums in the same order

LLAMA = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort }}<|end|>{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def build(style: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a family's kind, trained here on numbers and prompts."""
    specials, template, eos, digits = {
        "llama": (["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"], LLAMA, 1, "{1,3}"),
        "gemma": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], GEMMA, 1, ""),
        "qwen": (["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"], QWEN, 2, ""),
        "harmony": (
            ["<|return|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>"], HARMONY, 0, "{1,3}",
        ),
    }[style]  # fmt: skip
    backend = Tokenizer(models.BPE())
    corpus = [
        "Generate exactly ONE random number from a Gaussian distribution. user assistant model system"
    ]
    corpus += [f"{i}" for i in range(1000)] * 2 + [
        f"-{i}.{i * 7919 % 100000:05d}" for i in range(300)
    ]
    split = pre_tokenizers.Split(Regex(rf"\p{{N}}{digits}|[^\p{{N}}]+"), "isolated")
    if style == "gemma":  # SentencePiece-like: spaces become a visible character
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer, backend.decoder = split, decoders.Replace("▁", " ")
        alphabet = []
    else:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer, backend.decoder = (
            pre_tokenizers.Sequence([split, level]),
            decoders.ByteLevel(),
        )
        alphabet = level.alphabet()
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=1500, special_tokens=specials, initial_alphabet=alphabet),
    )
    if style in (
        "llama",
        "gemma",
    ):  # adds BOS by itself, as the real ones do: the template's must not be doubled
        backend.post_processor = processors.TemplateProcessing(
            single=f"{specials[0]} $A", special_tokens=[(specials[0], 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=specials[eos], chat_template=template
    )


STYLES = ("tiny", "llama", "gemma", "qwen", "harmony")


@pytest.fixture(scope="session")
def loaded() -> tuple:
    """(model, tokenizer, end) of the embedded model."""
    return trie.load(TINY)


@pytest.fixture(scope="session")
def tokenizers(loaded) -> dict:
    return {style: loaded[1] if style == "tiny" else build(style) for style in STYLES}


@pytest.fixture(scope="session")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="session")
def tokenizer(loaded):
    return loaded[1]


@pytest.fixture(scope="session")
def end(loaded) -> int:
    return loaded[2]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data")
    assert script("distributions.py", "--out", out).returncode == 0
    return out


@pytest.fixture(scope="session")
def prompts(tmp_path_factory, data) -> list[Path]:
    """Two unseen prompts and two ood ones."""
    folder = tmp_path_factory.mktemp("prompts")
    for split in ("unseen", "ood"):
        write_text(folder / f"{split}.jsonl", to_jsonl(read_rows([data / f"{split}.jsonl"])[:4:3]))
    return [folder / "unseen.jsonl", folder / "ood.jsonl"]


def script(*args, **options) -> subprocess.CompletedProcess:
    """Run `python script args` from the repository's root, as a user would."""
    return subprocess.run(
        command(*args), env=ENV, capture_output=True, text=True, timeout=300, **options
    )


def command(name, *args) -> list[str]:
    return [sys.executable, str(ROOT / name), *map(str, args)]


# The tests may run under make, and run make.
OUTER_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "MODEL_IS")
ENV = {key: value for key, value in os.environ.items() if key not in OUTER_MAKE} | {
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}


# ------------------------------------------------------------------------------------- scripts, in this process

BRIEF = ("--limit", 48, "--epochs", 1, "--batch", 16, "--lr", "1e-2")


def call(module, *arguments) -> None:
    """A script's main() in this process: importing torch again takes longer than most of these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        module.main()


def complaint(module, *arguments) -> str:
    """What run(main) ends with: the one line that Python prints to stderr, with status 1."""
    name = f"{module.__name__}.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            run(module.main)
    line = ending.value.code
    assert isinstance(line, str) and line.startswith(f"{name}: error: ") and "\n" not in line
    return line


def train(method, out, data, *flags):
    module = {"soft": train_soft, "hard": train_hard}[method]
    call(module, "--model", TINY, "--data", data / "train.jsonl", "--out", out, *flags)
    return out


@pytest.fixture(scope="session")
def adapters(tmp_path_factory, data) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("run")
    return {
        "soft": train("soft", folder / "soft", data, *BRIEF),
        "hard": train("hard", folder / "hard", data, *BRIEF, "--branches", 16),
    }


@pytest.fixture
def kit(tmp_path) -> Path:
    """A copy of the kit, to make things in."""
    folder = tmp_path / "kit"
    (folder / "tests").mkdir(parents=True)
    for name in ("Makefile", *FILES):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(TINY, folder / "tests" / "tiny")
    return folder
