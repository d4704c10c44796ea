"""What the tests share: the bundled model, tokenizers of five styles, and ways to run a script."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: no test may wait for a network

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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
FILES = (
    "distributions.py",
    "trie.py",
    "train_soft.py",
    "train_hard.py",
    "sample.py",
    "metrics.py",
)
sys.path.insert(0, str(ROOT))

import distributions
import train_hard
import train_soft
import trie

torch.set_num_threads(1)  # as in the scripts' own runs below: the same sums in the same order

# --------------------------------------------------------------------- tokenizers of five styles

LLAMA = (
    "{{ '<|begin_of_text|>' }}"
    "{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN = (
    "{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort }}<|end|>"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}"
    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


class Style(NamedTuple):
    """What distinguishes one family of real tokenizers from another."""

    specials: list[str]
    template: str
    eos: str
    digits: str  # a regular expression for the digits that may share a token


STYLE_OF = {
    "llama": Style(
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        LLAMA,
        eos="<|eot_id|>",
        digits=r"\p{N}{1,3}",
    ),
    "gemma": Style(
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        GEMMA,
        eos="<eos>",
        digits=r"\p{N}",
    ),
    "qwen": Style(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
        QWEN,
        eos="<|im_end|>",
        digits=r"\p{N}",
    ),
    "harmony": Style(
        ["<|return|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>"],
        HARMONY,
        eos="<|return|>",
        digits=r"\p{N}{1,3}",
    ),
}
STYLES = ("tiny", *STYLE_OF)


def build(style: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the given style, trained here on numbers and the words of a prompt."""
    specials, template, eos, digits = STYLE_OF[style]
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(rf"{digits}|[^\p{{N}}]+"), "isolated")
    if style == "gemma":  # like SentencePiece: a space becomes a visible character
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = split
        backend.decoder = decoders.Replace("▁", " ")
        alphabet = []
    else:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        backend.decoder = decoders.ByteLevel()
        alphabet = byte_level.alphabet()

    corpus = [
        "Generate exactly ONE random number from a Gaussian distribution. "
        "user assistant model system"
    ]
    corpus += [f"{i}" for i in range(1000)] * 2
    corpus += [f"-{i}.{i * 7919 % 100000:05d}" for i in range(300)]
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=specials, initial_alphabet=alphabet
    )
    backend.train_from_iterator(corpus, trainer)

    # Like the real ones, these two add BOS themselves. The template has one already, and the
    # prompt must not get a second.
    if style in ("llama", "gemma"):
        bos = specials[0]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, chat_template=template)


@pytest.fixture(scope="session")
def loaded() -> tuple:
    """(model, tokenizer, end) of the bundled model."""
    return trie.load(TINY)


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
def tokenizers(tokenizer) -> dict:
    """A tokenizer of each style."""
    return {"tiny": tokenizer} | {style: build(style) for style in STYLE_OF}


# ------------------------------------------------------------------- scripts, as a user runs them

# The tests may run under make, and some of them run make themselves.
OUTER_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
ENV = {key: value for key, value in os.environ.items() if key not in OUTER_MAKE}
ENV |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}


def command(name, *arguments) -> list[str]:
    """The command line of one of the kit's scripts."""
    return [sys.executable, str(ROOT / name), *map(str, arguments)]


def script(name, *arguments, **options) -> subprocess.CompletedProcess:
    """Run a script in a process of its own, as a user would."""
    return subprocess.run(
        command(name, *arguments),
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder with train.jsonl, unseen.jsonl and ood.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    assert script("distributions.py", "--out", folder).returncode == 0
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory, data) -> list[Path]:
    """Two files: one with two unseen prompts, one with two prompts of held-out families."""
    folder = tmp_path_factory.mktemp("prompts")
    files = []
    for split in ("unseen", "ood"):
        rows = distributions.read_rows([data / f"{split}.jsonl"])
        files.append(folder / f"{split}.jsonl")
        distributions.write_text(files[-1], distributions.to_jsonl([rows[0], rows[3]]))
    return files


# ---------------------------------------------------------------------- scripts, in this process
# Importing torch again would take longer than most of these runs.

BRIEF = ("--limit", 48, "--epochs", 1, "--batch", 16, "--lr", "1e-2")


def call(module, *arguments) -> None:
    """Run a script's main() in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        module.main()


def complaint(module, *arguments) -> str:
    """The one line that a script prints to stderr when it ends with an error (status 1)."""
    name = f"{module.__name__}.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            distributions.run(module.main)
    line = ending.value.code
    assert isinstance(line, str)
    assert line.startswith(f"{name}: error: ")
    assert "\n" not in line
    return line


def assert_mentions(message, *facts) -> None:
    """A message must state each of these facts; its other words may change."""
    for fact in facts:
        assert str(fact) in str(message)


def train(method, out, data, *flags):
    """Train the bundled model with a method ("soft" or "hard"); returns `out`."""
    module = {"soft": train_soft, "hard": train_hard}[method]
    call(module, "--model", TINY, "--data", data / "train.jsonl", "--out", out, *flags)
    return out


@pytest.fixture(scope="session")
def adapters(tmp_path_factory, data) -> dict[str, Path]:
    """An adapter of each method, trained briefly."""
    folder = tmp_path_factory.mktemp("run")
    return {
        "soft": train("soft", folder / "soft", data, *BRIEF),
        "hard": train("hard", folder / "hard", data, *BRIEF, "--branches", 16),
    }


@pytest.fixture
def kit(tmp_path) -> Path:
    """A copy of the kit, in which a test may run make or edit files."""
    folder = tmp_path / "kit"
    extras = folder / "tests" / "extras"
    extras.mkdir(parents=True)
    for name in ("Makefile", *FILES):
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "tests" / "extras" / "rules.mk", extras)  # the Makefile includes it
    shutil.copytree(TINY, folder / "tests" / "tiny")
    return folder
