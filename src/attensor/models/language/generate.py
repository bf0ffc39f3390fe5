"""Sampling from a language model, one token at a time, with decode caches where the mixers have them."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from attensor.models.language._streaming import Pace, bytes_of, whole_bytes, whole_characters
from attensor.models.language.counted import CountedDecoder
from attensor.models.language.decoder import Decoder
from attensor.nn import Cache
from attensor.ops._checks import checked

__all__ = ["Pace", "continue_text", "generate", "import_families", "load_text_model"]


@checked
def generate(
    decoder: Decoder | CountedDecoder,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    static: bool = False,
    compiled: bool = False,
    pace: Pace | None = None,
) -> Iterator[Tensor]:
    """Continue every row of a prompt.

    Each new token costs one decode step; with mixers that have no cache, one pass over everything so far.

    Args:
        decoder: the model, in the mode (train or eval) it shall run in.
        tokens: [B, T] prompt, T >= 1.
        max_new_tokens: how many to add.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample among the k most likely only.
        top_p: sample among the most likely only that together have this probability.
        generator: source of randomness on the tokens' device.
        static: caches of fixed size after the prompt, see `nn.Cache.make_static`.
        compiled: compile the step, with static caches once for all tokens.
        pace: receives how fast the tokens come.
    Yields:
        [B], the next token of each row.
    Raises:
        ValueError: an empty prompt, tokens that the model does not have, a negative temperature, top_k below 1, top_p
            that is no probability above 0, compiled without static, or static where a mixer has no cache.
    """
    _check_prompt(decoder, tokens)
    choose = _Choice(max_new_tokens, temperature, top_k, top_p, generator)
    _check_static(static, compiled, can_decode=decoder.can_decode)
    steps = _DecoderSteps(decoder, tokens, max_new_tokens, static=static, compiled=compiled)
    return _sample(steps, tokens, choose, pace or Pace())


@checked
def continue_text(
    folder: str | Path,
    prompt: str,
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    seed: int,
    top_p: float | None = None,
    static: bool = False,
    compiled: bool = False,
    pace: Pace | None = None,
) -> Iterator[str]:
    """Continue a text with a model in transformers' format, one of the families here or another.

    Args:
        folder: what `save_pretrained` wrote. Without a tokenizer in it, tokens are bytes: 256 of them.
        prompt: text to continue.
        max_new_tokens: how many tokens to add; an end-of-text token ends sooner.
        temperature, top_k, top_p, static, compiled, pace: see `generate`.
        seed: of the choices.
    Yields:
        Text, as soon as its characters are whole; the prompt is not repeated.
    Raises:
        ValueError: no model in that folder, or neither a tokenizer nor bytes; see also `generate`.
        MissingExtraError: transformers is not installed.
    """
    choose = _Choice(max_new_tokens, temperature, top_k, top_p, torch.Generator().manual_seed(seed))
    _check_static(static, compiled, can_decode=True)
    folder = Path(folder)
    model, encode, decode, ends = load_text_model(folder)
    ids = encode(prompt or "\n")
    _check_encoded(folder, ids, model.config.vocab_size)
    steps = _TransformersSteps(model, len(ids) + max_new_tokens, static=static, compiled=compiled)
    stream = (int(token) for token in _sample(steps, torch.tensor([ids]), choose, pace or Pace()))
    until_end = itertools.takewhile(lambda token: token not in ends, stream)
    yield from whole_bytes(until_end) if decode is None else whole_characters(until_end, decode)


def _check_encoded(folder: Path, ids: list[int], vocabulary: int) -> None:
    if not ids or max(ids) >= vocabulary:
        found = f"token {max(ids)}" if ids else "no token"
        raise ValueError(
            f"{folder}: the prompt becomes {found}, and the model has {vocabulary}; write a longer "
            "prompt, or save the tokenizer that the model was trained with beside it."
        )


class _Steps(Protocol):
    """A model that reads on: called with the tokens it has not read yet, it gives the logits [B, V] of the next."""

    compiled: bool

    def __call__(self, unread: Tensor, /) -> Tensor: ...

    def state_bytes(self) -> int:
        """What it keeps of the past."""

    def end(self) -> None:
        """Leave the model as it was, and let go of it."""


class _DecoderSteps:
    """Steps of a decoder; without caches it reads everything anew."""

    def __init__(
        self, decoder: Decoder | CountedDecoder, tokens: Tensor, new: int, *, static: bool, compiled: bool
    ) -> None:
        self.compiled, self._static, self._total = compiled, static, tokens.shape[1] + new
        self._decoder, self._caches, self._read = decoder, None, tokens[:, :0]
        if decoder.can_decode:
            self._caches = decoder.new_caches(tokens.shape[0], None if static else self._total)
        self._held = [cache for cache in self._caches or () if isinstance(cache, Cache)]

    def __call__(self, unread: Tensor) -> Tensor:
        self._read = unread if self._caches is not None else torch.cat([self._read, unread], 1)
        logits: Tensor = self._decoder(self._read, caches=self._caches)
        if self._static and not self._held[0].is_static:
            self._freeze()
        return logits[:, -1]

    def state_bytes(self) -> int:
        return sum(cache.nbytes for cache in self._held)

    def end(self) -> None:
        if self.compiled:
            self._compilable._compiled_call_impl = None
        del self._decoder  # a pace that is looked at later keeps these steps, and shall not keep the model

    def _freeze(self) -> None:
        """After the prompt all steps are alike: caches of fixed size, and one compilation serves them all."""
        for cache in self._held:
            cache.make_static(self._total)
        if self.compiled:
            self._compilable.compile(fullgraph=True, dynamic=False)

    @property
    def _compilable(self) -> Decoder:
        return self._decoder.decoder if isinstance(self._decoder, CountedDecoder) else self._decoder


class _TransformersSteps:
    """Steps of a model in transformers' format."""

    def __init__(self, model: Any, max_length: int, *, static: bool, compiled: bool) -> None:
        self.compiled, self._model, self._run = compiled, model, model
        self._past: Any = _static_cache(model, max_length) if static else None

    def __call__(self, unread: Tensor) -> Tensor:
        out = self._run(unread, past_key_values=self._past, use_cache=True)
        self._past = out.past_key_values
        if self.compiled and self._run is self._model:  # the prompt's step has another shape than all that follow
            self._run = torch.compile(self._model, fullgraph=True, dynamic=False)
        return cast("Tensor", out.logits[:, -1])

    def state_bytes(self) -> int:
        return bytes_of(self._past)

    def end(self) -> None:
        del self._model, self._run  # as in _DecoderSteps; the model itself was not compiled in place


def _static_cache(model: Any, max_length: int) -> Any:
    """A cache of fixed size of one of the families here, or transformers' own."""
    if hasattr(model, "new_cache"):
        return model.new_cache(max_length=max_length)
    from attensor.models.language._transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=max_length)


def load_text_model(
    folder: Path,
) -> tuple[Any, Callable[[str], list[int]], Callable[[list[int]], str] | None, list[int]]:
    """Model, text to tokens, tokens to text (None: they are bytes), and the tokens that end a text.

    Args:
        folder: what `save_pretrained` wrote. Without a tokenizer in it, tokens are bytes: 256 of them.
    Raises:
        ValueError: no language model in that folder, or neither a tokenizer nor bytes.
        MissingExtraError: transformers is not installed.
    """
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds no model in transformers' format: there is no config.json in it.")
    from attensor.models.language._transformers import AutoModelForCausalLM, AutoTokenizer

    import_families()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    except Exception as error:  # whatever transformers and safetensors say of a folder
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{folder} holds no language model that can be read: {reason} Give a folder that save_pretrained of a "
            "model that predicts the next token wrote."
        ) from error
    if (folder / "tokenizer_config.json").exists():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        ends = torch.tensor([] if model.config.eos_token_id is None else model.config.eos_token_id).flatten()
        return model, tokenizer.encode, tokenizer.decode, ends.tolist()
    if model.config.vocab_size != 256:
        raise ValueError(
            f"{folder} has no tokenizer, and the model's {model.config.vocab_size} tokens are not the 256 bytes; save "
            "the tokenizer beside it with tokenizer.save_pretrained(folder)."
        )
    return model, lambda text: list(text.encode()), None, []


def _check_prompt(decoder: Decoder | CountedDecoder, tokens: Tensor) -> None:
    if tokens.dim() != 2 or not tokens.numel() or tokens.dtype not in (torch.int32, torch.int64) or tokens.is_meta:
        raise ValueError(
            "generate: tokens must be integers [B, T] with at least one token, got "
            f"{list(tokens.shape)} {tokens.dtype} on {tokens.device}; pass the prompt's ids, .long()."
        )
    least, most = (int(x) for x in tokens.aminmax())
    if least < 0 or most >= decoder.embed_tokens.num_embeddings:
        raise ValueError(
            f"generate: tokens must be 0 .. {decoder.embed_tokens.num_embeddings - 1}, those of the model, got {least} "
            f".. {most}; encode the prompt with its tokenizer."
        )


@dataclass(frozen=True)
class _Choice:
    """How many tokens, and how one is chosen of logits."""

    count: int
    temperature: float
    top_k: int | None
    top_p: float | None
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"generate: max_new_tokens must be at least 0, got {self.count}.")
        if self.temperature < 0:
            raise ValueError(
                f"generate: temperature must be at least 0, got {self.temperature}; 0 takes the most likely token."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"generate: top_k must be at least 1, got {self.top_k}; None samples among all tokens.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"generate: top_p must be above 0 and at most 1, got {self.top_p}; None samples among all tokens."
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """[B, V] to [B]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits.float() / float(self.temperature)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            smallest = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < smallest, float("-inf"))
        shares = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = shares.sort(dim=-1, descending=True)
            # one that is needed to reach it is kept
            is_beyond = ordered.cumsum(-1) - ordered >= self.top_p
            shares = shares.masked_fill(is_beyond.gather(-1, order.argsort(-1)), 0.0)
        return torch.multinomial(shares, 1, generator=self.generator).squeeze(1)


def _check_static(static: bool, compiled: bool, *, can_decode: bool) -> None:
    if compiled and not static:
        raise ValueError(
            "generate: compiled needs static=True: caches that grow would be compiled anew at every token; set both."
        )
    if static and not can_decode:
        raise ValueError(
            "generate: static needs mixers with a cache (new_cache), got one that has none; leave static out."
        )


def _sample(steps: _Steps, tokens: Tensor, choose: _Choice, pace: Pace) -> Iterator[Tensor]:
    """[B] at a time; the pace knows of the state even before the first token is asked for."""
    pace.state_bytes = steps.state_bytes
    return _one_by_one(steps, tokens, choose, pace)


@torch.no_grad()
def _one_by_one(steps: _Steps, tokens: Tensor, choose: _Choice, pace: Pace) -> Iterator[Tensor]:
    pace.prompt = tokens.shape[1]
    try:
        for _ in range(choose.count):
            chosen = pace.timed(lambda unread: choose(steps(unread)), tokens, compiles=steps.compiled)
            yield chosen
            tokens = chosen[:, None]
    finally:
        steps.end()


def import_families() -> None:
    """Import every family, so that transformers' Auto classes know it.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__package__}.{module.name}")
