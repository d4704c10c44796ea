r"""From answers to tokens: the prefix trie, chat prompts, and forward passes that share tokens.

The canonical outputs of a prompt are its possible answers, each with a known probability. A
tokenizer turns each of them into a sequence of tokens, and together these sequences form a trie,
with one leaf for each output. The probabilities of the outputs determine how probable each next
token should be after every prefix. This is the token's target (arXiv 2605.11845, "soft"). With P(s)
for the total probability of the outputs that begin with s:

    q(token | prefix) = P(prefix + token) / P(prefix)

Four outputs, with one token for each character and $ as the end token, give this trie:

            next token, with its target
    ""  ->  1   .6   ->  $  1/6          the output "1"  has probability .1
                     ->  2  2/6  ->  $   the output "12" has probability .2
                     ->  5  3/6  ->  $   the output "15" has probability .3
        ->  3   .4   ->  $               the output "3"  has probability .4

The file has five parts: the trie; chat prompts; forward passes that read shared tokens only once
(`prefill` and `branch` for training and scoring, `walk` for drawing); loading and saving; and the
special cases of particular models. To learn the idea, read the first part and the third. This is a
library with no command line.
"""

import copy
import datetime
import io
import json
import os
import platform
import re
import shutil
import subprocess
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from scipy.special import rel_entr
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Mxfp4Config,
)
from transformers.utils import logging as transformers_logging

from distributions import InputError, digest, write_text

PAD = -1  # fills short rows of a token matrix; never a token id
CHECKPOINT_SECONDS = 300  # between two checkpoints of a training run

# -------------------------------------------------------------------------------- the trie


class Trie:
    """The canonical outputs of one prompt, as paths of tokens.

    It stores no nodes, only the leaves, as the sorted rows of a matrix. So the leaves that share a
    prefix are neighbours.

    Arguments:
        tokens (N, W): one output in each row, as encode() returns them
        probs (N,):    the probability of each output

    Attributes:
        tokens (N, W), probs (N,):  as above, with the rows sorted by their tokens
        lengths (N,):               the number of tokens of each leaf
        order (N,):                 each leaf's row in the arguments

    >>> END = 10
    >>> outputs = np.array([[1, END, PAD], [1, 2, END], [1, 5, END], [3, END, PAD]])
    >>> tree = Trie(outputs, np.array([0.1, 0.2, 0.3, 0.4]))
    >>> tree.path(0)    # the tokens 1, 2, 10 sort before 1, 10
    array([ 1,  2, 10])
    >>> for children, q in tree.path_targets(0):
    ...     print(children, q.round(2))
    [1 3] [0.6 0.4]
    [ 2  5 10] [0.33 0.5  0.17]
    [10] [1.]
    """

    def __init__(self, tokens: np.ndarray, probs: np.ndarray):
        self.order = np.lexsort(tokens.T[::-1])  # by column 0, then 1, ...; lexsort reads backwards
        self.tokens = tokens[self.order]
        self.probs = probs[self.order]
        self.lengths = (self.tokens != PAD).sum(1)

    def path(self, leaf: int) -> np.ndarray:
        """The tokens of a leaf, (L,)."""
        return self.tokens[leaf, : self.lengths[leaf]]

    def path_targets(self, leaf: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each prefix of a leaf, the possible next tokens (C,) and their targets q (C,)."""
        targets = []
        # Invariant: low..high-1 are exactly the leaves that begin with the prefix so far, ours
        # among them. At first the prefix is empty.
        low, high = 0, len(self.tokens)
        for depth in range(self.lengths[leaf]):
            # These leaves' next tokens are sorted, so equal tokens are neighbours. None of them is
            # PAD: the prefix does not include the end token, so every leaf continues.
            column = self.tokens[low:high, depth]
            children, starts = np.unique(column, return_index=True)
            mass = np.add.reduceat(self.probs[low:high], starts)  # sums from each start to the next
            targets.append((children, mass / mass.sum()))

            # The leaves of child c are starts[c] to stops[c] - 1. Go on with those of our child.
            stops = np.append(starts[1:], len(column))
            ours = np.searchsorted(children, self.tokens[leaf, depth])
            low, high = low + starts[ours], low + stops[ours]
        return targets

    def quantile_leaves(self, quantiles: np.ndarray) -> np.ndarray:
        """The leaf at each quantile; quantiles lie in [0, 1).

        A uniformly random quantile selects each leaf with the leaf's probability (inverse-CDF
        sampling).
        """
        cumulative = np.cumsum(self.probs)
        return np.searchsorted(cumulative, quantiles * cumulative[-1], "right")


def pad_targets(
    paths: list[np.ndarray], targets: list[list]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stack R paths and their path_targets.

    Returns completions (R, L), padded with PAD; and for every prefix its next tokens (R, L, C) and
    their q (R, L, C), where unused places have q = 0.
    """
    longest = max(len(path) for path in paths)
    most_children = max(len(children) for of_path in targets for children, _ in of_path)
    completions = np.full((len(paths), longest), PAD, np.int64)
    tokens = np.zeros((len(paths), longest, most_children), np.int64)
    q = np.zeros(tokens.shape, np.float32)
    for r, path in enumerate(paths):
        completions[r, : len(path)] = path
        for t, (children, child_q) in enumerate(targets[r]):
            tokens[r, t, : len(children)] = children
            q[r, t, : len(children)] = child_q
    return torch.from_numpy(completions), torch.from_numpy(tokens), torch.from_numpy(q)


def kl_floor(q: np.ndarray, perfect: np.ndarray, lengths: np.ndarray) -> float:
    """The KL divergence that a perfect sampler scores on the trie, in nats per token.

    For a continuous family it is not zero, because the trie keeps only 1001 of perhaps a million
    numbers. If just one of them begins with "3.50", the trie gives its next digit a probability of
    1, but a perfect sampler gives it about 1/10. Likewise, q(x), the probability of a complete
    output x, is much larger than perfect(x), the probability that a perfect sampler prints x.

    Both are products of next-token probabilities, one for each token of x. So log(q(x)/perfect(x))
    is the sum of the log-ratios of its tokens. We divide it by the number of tokens, and average
    over outputs drawn from q:

        floor = sum over x of  q(x) * log(q(x) / perfect(x)) / length(x)

    q (N,): the probability of each leaf; perfect (N,): from distributions.canonical_outputs;
    lengths (N,): tokens of each leaf.

    >>> q, perfect = np.array([0.5, 0.5]), np.array([0.25, 0.25])
    >>> round(kl_floor(q, perfect, lengths=np.array([4, 4])), 3)    # log(2) / 4
    0.173

    It is a reference, not a bound: a model that has learned which 1001 numbers the trie keeps may
    score below it, although its draws are no better.
    """
    return float(np.sum(rel_entr(q, perfect) / lengths))  # rel_entr(q, p) = q log(q / p)


# ---------------------------------------------------------------- chat prompts and the end token


def encode_one(tokenizer, text: str) -> list[int]:
    """The token ids of a text. A chat template writes its own BOS, so none is added here."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def render(tokenizer, messages: list[dict], thinking: bool = False, **options) -> str:
    """Format messages with the chat template. Raises InputError if it cannot render them."""
    options["enable_thinking"] = thinking  # Qwen3's; a template ignores what it does not know
    options["reasoning_effort"] = "low"  # gpt-oss's
    try:
        options |= pin_date(tokenizer.get_chat_template())
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # a template is a program, and may raise anything
        raise InputError(f"the chat template cannot render a conversation: {error}") from None


def chat_ids(tokenizer, prompt: str, system: str = "", thinking: bool = False) -> list[int]:
    """The token ids of a user's prompt, up to the point where the assistant's answer begins.

    With `thinking`, a reasoning model's answer begins with its thoughts.
    """
    user = {"role": "user", "content": prompt}
    messages = [{"role": "system", "content": system}, user] if system else [user]
    try:
        text = render(tokenizer, messages, thinking, add_generation_prompt=True)
    except InputError:
        if not system:
            raise
        # Some templates do not support a system prompt. We then put it in the user's message.
        return chat_ids(tokenizer, f"{system}\n\n{prompt}", thinking=thinking)
    if not thinking:
        text = open_final_channel(text)
    return encode_one(tokenizer, text)


def end_token(tokenizer) -> int:
    """The token that the chat template puts right after an assistant's answer.

    We find it by rendering a conversation, because it is not always the tokenizer's eos_token:
    Gemma's is <eos>, but its template ends an answer with <end_of_turn>.

    >>> _, tokenizer, end = load("tests/tiny")
    >>> tokenizer.decode(end)
    '<|im_end|>'
    """
    answer = "Zq7ANSWER7qZ"  # appears in no template
    question = {"role": "user", "content": "Hello."}
    text = render(tokenizer, [question, {"role": "assistant", "content": answer}])
    _, found, after = text.rpartition(answer)
    ids = encode_one(tokenizer, after)
    if not found or not ids or ids[0] not in tokenizer.added_tokens_decoder:
        raise InputError(
            "the chat template does not close an answer with a special token "
            f"(it continues with {after[:20]!r})"
        )
    return ids[0]


def encode(tokenizer, texts: list[str], end: int) -> np.ndarray:
    """Turn N strings into completions: each string's tokens, the end token, then PAD. (N, W) int32.

    >>> _, tokenizer, end = load("tests/tiny")
    >>> [len(row[row != PAD]) for row in encode(tokenizer, ["0.5", "12"], end)]
    [4, 3]
    """
    backend = tokenizer.backend_tokenizer  # several times faster than the tokenizer itself
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    paths = [[*encoding.ids, end] for encoding in encodings]
    tokens = np.full((len(paths), max(len(path) for path in paths)), PAD, np.int32)
    for row, path in zip(tokens, paths, strict=True):
        row[: len(path)] = path
    return tokens


# ----------------------------------------------- forward passes that read shared tokens only once


class Context(NamedTuple):
    """What a model has read so far, in R rows.

    cache:            the keys and values of every layer
    mask (R, P):      1 where a row has a token, 0 where it has padding
    logits (R, T, V): the logits after each of the T tokens that were read last, or only after the
                      very last one (T = 1); None after a fork
    """

    cache: object
    mask: torch.Tensor
    logits: torch.Tensor | None

    def fork(self, rows: torch.Tensor) -> "Context":
        """A new Context whose row i is a copy of row rows[i]. Gradients flow through it."""
        cache = copy.copy(self.cache)
        # New layer objects, so that the assignments below do not change this Context.
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in cache.layers:
            # Like cache.batch_select_indices, but index_select is faster than indexing.
            layer.keys = layer.keys.index_select(0, rows)
            layer.values = layer.values.index_select(0, rows)
        return Context(cache, self.mask[rows], logits=None)


def extend(model, context: Context | None, tokens: torch.Tensor, last_only=False) -> Context:
    """Read T more tokens in each row. Returns the Context after them.

    context:        its cache is changed in place, so fork it first if you still need it; or None
    tokens (R, T):  PAD is masked, and takes no position
    last_only:      compute logits only after the last token, which saves time
    """
    mask = (tokens != PAD).long()
    if context is not None:
        mask = torch.cat([context.mask, mask], 1)
    # A token's position is the number of real tokens before it; clamp is for PAD at the beginning.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    # subtle: 0 keeps all logits; 1 and [-1] keep only the last. But 1 gives the output layer a view
    # into all hidden states, which makes it slow (by a tenth of a training step). [-1] makes a
    # compact copy.
    logits_to_keep = torch.tensor([-1]) if last_only else 0
    out = model(
        input_ids=tokens.clamp(min=0),  # PAD is not a token id; where it is masked, any id will do
        attention_mask=mask,
        position_ids=positions[:, -tokens.shape[1] :],
        past_key_values=context.cache if context else None,
        use_cache=True,
        logits_to_keep=logits_to_keep,
    )
    return Context(out.past_key_values, mask, out.logits)


def prefill(model, prompts: list[list[int]]) -> Context:
    """Read B prompts, one in each row, and compute the logits after their last tokens: (B, 1, V).

    The beginning that all prompts share (the chat header, "Generate exactly ONE random number from
    a") is read once, as a single row, which is then copied for each prompt. The rest of each prompt
    is padded on the left, so that all end in the same column:

        head ... head  PAD  PAD  Gaussian ...
        head ... head  Beta-Binomial      ...
    """
    head = []
    if len(prompts) > 1 and not slides_window(model):  # a sliding window needs whole prompts
        # commonprefix works on any sequences, not only paths. With [:-1], every prompt keeps at
        # least one token of its own.
        head = os.path.commonprefix([prompt[:-1] for prompt in prompts])
    rests = [prompt[len(head) :] for prompt in prompts]
    width = max(len(rest) for rest in rests)
    ids = torch.tensor([[PAD] * (width - len(rest)) + rest for rest in rests], device=model.device)

    context = None
    if head:
        context = extend(model, None, ids.new_tensor([head]), last_only=True)
        context = context.fork(ids.new_zeros(len(prompts)))
    return extend(model, context, ids, last_only=True)


def branch(model, context: Context, completions: torch.Tensor) -> torch.Tensor:
    """The logits that predict K completions for each of B prompts: (B*K, L, V).

    completions (B*K, L): a prompt's K completions are adjacent; PAD follows short ones. Each copy
    of the prompt's row reads one of them, and position t of the result predicts its token t:

        position           0           1           2
        after reading      prompt      token 0     token 1
        predicts           token 0     token 1     token 2

    Except for rounding, logits and gradients are as if each prompt and completion were read
    together, as one row. (With dropout, all completions of a prompt share the prompt's dropout.)
    After a short completion's end, the logits mean nothing.
    """
    count, length = completions.shape
    k = count // len(context.mask)
    row_of = torch.arange(count, device=completions.device) // k
    first = context.logits[row_of, -1:]  # (B*K, 1, V), after the prompt's last token
    if length == 1:
        return first
    # The last token predicts nothing, so it is not read. PAD becomes token 0, so that extend() does
    # not mask it: masking takes time, and what a row reads after its end does not matter.
    read = completions[:, :-1].clamp(min=0)
    rest = extend(model, context.fork(row_of), read).logits
    return torch.cat([first, rest], 1)


def choose(logits: torch.Tensor, row_of: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Choose the next token for each of m draws, at temperature 1 over the full vocabulary: (m,).

    logits (R, V): one distribution for each row; row_of (m,): each draw's current row;
    uniform (m,): each draw's own random number in [0, 1).

    This is inverse-CDF sampling: the token where the cumulative distribution passes the random
    number. Copying the row's distribution for every draw would take too much memory. Instead, we
    shift row r up by r, so that all rows form one increasing sequence, and search that for all
    draws at once. With two rows and three tokens:

        row 0     .2    .7   1.0
        row 1    1.5   1.6   2.0     a draw at row 1 with the random number .55 looks for 1.55

    The first entry above 1.55 is 1.6, at place 4 (from 0). 4 % 3 = 1, so the draw gets token 1.
    """
    cdf = logits.double().softmax(-1).cumsum(-1)  # in float32, rounding errors would reach 1e-5
    cdf = cdf / cdf[:, -1:]  # every row ends at exactly 1
    cdf += torch.arange(len(cdf), device=cdf.device)[:, None]  # row r: from r to r + 1
    # right=True: strictly above, so that a token of probability 0 is never chosen
    place = torch.searchsorted(cdf.flatten(), row_of + uniform, right=True)
    return place % cdf.shape[1]


@torch.inference_mode()
def walk(
    model,
    prompts: list[list[int]],
    ends: list[int],
    uniform: np.ndarray,
    at_once: int = 1024,
) -> list[list[int]]:
    """Draw n answers to each of B prompts; those that share a prefix read it together.

    uniform (B * n, T): the random numbers of each draw; a prompt's n draws are adjacent. A draw
    uses only its own numbers, so its answer does not depend on which other draws are made with it.
    To limit memory, at most `at_once` draws are made together. This changes results only by
    floating-point rounding.

    Returns each draw's tokens, in order. An answer ends with one of `ends`, or after T tokens.
    """
    device = model.device
    ends = torch.tensor(ends, device=device)
    draws_per_prompt = len(uniform) // len(prompts)
    context = prefill(model, prompts)  # one row for each prompt
    row_of = torch.arange(len(prompts), device=device).repeat_interleave(draws_per_prompt)

    paths = []
    groups = zip(torch.from_numpy(uniform).split(at_once), row_of.split(at_once), strict=True)
    for group_uniform, group_row_of in groups:
        tokens = walk_group(model, context, group_row_of, ends, group_uniform.to(device))
        lengths = (tokens != PAD).sum(1).tolist()
        for path, length in zip(tokens.tolist(), lengths, strict=True):
            paths.append(path[:length])
    return paths


def walk_group(
    model,
    context: Context,
    row_of: torch.Tensor,
    ends: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """Draw m answers. Returns their tokens (m, T), padded with PAD; the context is not changed.

    row_of (m,): the row of the context that each draw continues; uniform (m, T), ends: see walk.

    Among a thousand draws of a number, many share their first few characters. So we keep one row of
    the batch for each *distinct* prefix, and remember which row each draw is at:

        step 0    row 0: ""                           1000 draws at row 0
        step 1    row 0: "1"   row 1: "3"             612 draws at row 0, 388 at row 1
        step 2    row 0: "1."  row 1: "12"  ...       the rows are numbered anew at each step

    A step therefore costs only as much as its distinct prefixes.
    """
    steps = uniform.shape[1]
    tokens = torch.full(uniform.shape, PAD, device=uniform.device)
    alive = torch.arange(len(uniform), device=uniform.device)  # the draws that have not ended
    for t in range(steps):
        # row_of[i] and token[i] belong to draw alive[i].
        token = choose(context.logits[:, -1], row_of, uniform[alive, t])
        tokens[alive, t] = token

        unfinished = ~torch.isin(token, ends)
        alive = alive[unfinished]
        row_of = row_of[unfinished]
        token = token[unfinished]
        if len(alive) == 0 or t + 1 == steps:
            break

        # Each distinct pair of a row and a token gets a new row: a copy of the old row that reads
        # the token. unique() also says which pair, and so which new row, belongs to each draw.
        pairs = torch.stack([row_of, token])  # (2, draws alive)
        (parents, next_tokens), row_of = torch.unique(pairs, dim=1, return_inverse=True)
        context = extend(model, context.fork(parents), next_tokens[:, None])
    return tokens


# ------------------------------------------------------------------------- loading and saving

transformers_logging.disable_progress_bar()
# transformers triggers this warning in its own code.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")


def processes() -> PartialState:
    """The state of this process, which is one of several under `accelerate launch`."""
    patience = datetime.timedelta(weeks=1)  # how long to wait for a slower process
    return PartialState(cpu=not torch.cuda.is_available(), timeout=patience)


def load(name: str, adapter: str | Path | None = None) -> tuple:
    """Load a chat model: (model, tokenizer, end), with a PEFT adapter if one is given.

    name is a hub id or a folder. The model is in eval mode, in bfloat16 on a GPU and in float32 on
    a CPU, where bfloat16 is slow. `end` is its end token; an answer ends there or at any other
    token in model.generation_config.eos_token_id. Raises InputError if the model or adapter cannot
    be used.
    """
    device = processes().device
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        options = dequantize(AutoConfig.from_pretrained(name))
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, output_loading_info=True, **options
        )
    except Exception as error:  # a checkpoint can be broken in many ways
        raise InputError(f"cannot load the model {name!r}: {error}") from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(f"{name!r} is missing {len(missing)} weights, such as {missing[0]}")

    # subtle: the checkpoint's other settings are dropped. Otherwise model.generate() would sample
    # with its top_k and penalties instead of from the model's own distribution.
    end = end_token(tokenizer)
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) | {end}
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends - {None}))

    model = model.to(device).eval()
    if adapter:
        model = load_adapter(model, name, Path(adapter))
    return model, tokenizer, end


def identity(name: str) -> str:
    """Identifies a model, wherever it is stored: the checksums of its files, or its hub id."""
    suffixes = (".json", ".jinja", ".safetensors", ".bin")
    files = [path for path in sorted(Path(name).glob("*")) if path.suffix in suffixes]
    return " ".join(digest(path) for path in files) or name


def load_adapter(model, name: str, adapter: Path):
    """Load a trained adapter into the model `name`. Raises InputError if it does not fit."""
    try:
        base = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
        record = adapter / "run.json"
        trained_on = json.loads(record.read_text())["identity"] if record.exists() else base
        if trained_on not in (name, identity(name)):
            raise ValueError(f"it was trained on {base!r}, or on other weights with that name")
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"the adapter {adapter} does not fit {name!r}: {error}") from None

    # subtle: PEFT only warns when no weight matches by name, and the model would then behave like
    # its base. So we check that the adapter changes the logits of some tokens.
    probe = torch.arange(1, 9, device=model.device)[None]
    with torch.inference_mode():
        adapted = model(input_ids=probe).logits
        with model.disable_adapter():
            plain = model(input_ids=probe).logits
    if not adapted.isfinite().all():
        raise InputError(
            f"the adapter {adapter} gives logits that are not finite: its training diverged"
        )
    if torch.equal(adapted, plain):
        raise InputError(f"the adapter {adapter} changes nothing: it is untrained or did not load")
    return model


def save_adapter(accelerator, model, out: Path) -> None:
    """Write an adapter: its config, then its weights, whose presence marks it as finished."""
    weights = accelerator.get_state_dict(model)  # every process may hold a part of them
    if not accelerator.is_main_process:
        return
    temporary = out / "unfinished"
    model = accelerator.unwrap_model(model)
    config = model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)  # a set; its order changes between runs
    model.save_pretrained(temporary, state_dict=weights)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        os.replace(temporary / name, out / name)
    shutil.rmtree(temporary)


class Checkpoint:
    """The state of a training run in one file, from which it resumes after being killed.

    A resumed run's adapter is byte-identical to that of an uninterrupted run. `made` describes the
    run (options, inputs, code, number of processes); a checkpoint of a different run is an error.
    The random states of all processes are saved too, because dropout uses them.
    """

    def __init__(self, path: Path, accelerator, made: dict, trainable: list, optimizer, schedule):
        self.path, self.accelerator, self.made = path, accelerator, made
        self.trainable, self.optimizer, self.schedule = trainable, optimizer, schedule
        self.saved_at = time.monotonic()

    def load(self) -> int:
        """Restore the run. Returns how many steps it has finished: 0 if there is no checkpoint."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        differing = [key for key in self.made if state["made"].get(key) != self.made[key]]
        if differing:
            raise InputError(
                f"{self.path} belongs to a run with different {' and '.join(differing)}; "
                f"to start again, remove {self.path.parent}"
            )
        with torch.no_grad():
            for parameter, weights in zip(self.trainable, state["weights"], strict=True):
                parameter.copy_(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        cpu, gpu = state["random"][self.accelerator.process_index]
        torch.set_rng_state(cpu)
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(gpu)
        return state["step"]

    def save_if_due(self, step: int, end_of_epoch: bool) -> None:
        """Save the state if the epoch ends here, or if five minutes have passed."""
        due = end_of_epoch or time.monotonic() - self.saved_at > CHECKPOINT_SECONDS
        (due,) = broadcast_object_list([due])  # clocks differ; the main process decides
        if not due:
            return
        gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        random = gather_object([(torch.get_rng_state(), gpu)])
        if self.accelerator.is_main_process:
            state = {"made": self.made, "step": step, "random": random}
            state["weights"] = [parameter.detach() for parameter in self.trainable]
            state["optimizer"] = self.optimizer.state_dict()
            state["schedule"] = self.schedule.state_dict()
            buffer = io.BytesIO()  # torch.save to a file does not report a full disk
            torch.save(state, buffer)
            temporary = self.path.with_suffix(".tmp")
            temporary.write_bytes(buffer.getbuffer())
            os.replace(temporary, self.path)
        self.saved_at = time.monotonic()


def write_run(path: Path, args, **more) -> None:
    """Before work starts, record how a result is made: options, inputs, versions and hardware."""
    folder = Path(__file__).parent
    commit = subprocess.getoutput(f"git -C '{folder}' rev-parse HEAD 2>/dev/null")
    packages = ("torch", "transformers", "peft", "numpy", "scipy")
    record = {"args": vars(args), **more}
    record["template_date"] = str(DATE)
    record["commit"] = commit
    record["device"] = device_name()
    record["versions"] = {name: version(name) for name in packages}
    record["cores"] = os.cpu_count()
    record["threads"] = torch.get_num_threads()
    write_text(path, json.dumps(record, indent=1) + "\n")


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    names = re.findall("model name.*: (.*)", cpus.read_text()) if cpus.exists() else []
    return names[0] if names else platform.machine()


# --------------------------------------------------------- special cases of particular models
# The functions above and the trainers call these. A new model may need one more.

DATE = datetime.date(2024, 7, 26)


def pin_date(template: str) -> dict:
    """Options that give a template a fixed date. Llama 3.2 and gpt-oss print today's date, so their
    results would change from day to day.

    Llama takes a date_string. gpt-oss calls the function strftime_now. We define a macro of that
    name in front of the template; it replaces the format codes one by one:
    {{ format.replace('%d', '26').replace('%m', '07') ... }}
    """
    replacements = [
        f".replace('{code}', '{DATE.strftime(code)}')" for code in "%d %m %b %B %y %Y".split()
    ]
    macro = (
        "{% macro strftime_now(format) %}{{ format" + "".join(replacements) + " }}{% endmacro %}"
    )
    return {"date_string": DATE.strftime("%d %b %Y"), "chat_template": macro + template}


def open_final_channel(text: str) -> str:
    """gpt-oss begins by choosing a channel, since it may think first. We open the final one."""
    is_gpt_oss = text.endswith("<|start|>assistant")
    return text + "<|channel|>final<|message|>" if is_gpt_oss else text


def dequantize(config) -> dict:
    """gpt-oss stores its experts in four bits, which cannot carry gradients; we dequantize them."""
    quantization = getattr(config, "quantization_config", None) or {}
    if quantization.get("quant_method") == "mxfp4":
        return {"quantization_config": Mxfp4Config(dequantize=True)}
    return {}


def slides_window(model) -> bool:
    """Gemma 3 and gpt-oss use sliding-window attention, and the window is measured in positions of
    the cache. Padding between a shared head and the rest of a prompt would push tokens out of it.
    """
    model = getattr(model, "module", model)  # with several processes, the model is wrapped
    config = model.config.get_text_config()
    return getattr(config, "sliding_window", None) is not None


def vision_modules(model) -> str | None:
    """A pattern for the modules that LoRA should skip: larger Gemma 3 models have vision layers."""
    return ".*vision_tower.*" if hasattr(model.config, "vision_config") else None
