"""Sampling from a language model, one token at a time, with decode caches where the mixers have them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from attensor.models.language.counted import CountedDecoder
from attensor.models.language.decoder import Decoder
from attensor.ops._checks import checked

__all__ = ["continue_text", "generate", "import_families", "load_text_model"]


@checked
def generate(
    decoder: Decoder | CountedDecoder,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Continue every row of a prompt.

    Each new token costs one decode step; with mixers that have no cache, one pass over everything so far.

    Args:
        decoder: the model, in the mode (train or eval) it shall run in.
        tokens: [B, T] prompt, T >= 1.
        max_new_tokens: how many to add.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample among the k most likely only.
        generator: source of randomness on the tokens' device.
    Yields:
        [B], the next token of each row.
    Raises:
        ValueError: an empty prompt, tokens that the model does not have, a negative temperature, or top_k below 1.
    """
    _check_prompt(decoder, tokens)
    _check_choices(max_new_tokens, temperature, top_k)
    caches = None
    if decoder.can_decode:
        caches = decoder.new_caches(tokens.shape[0], tokens.shape[1] + max_new_tokens)
    read = tokens[:, :0]

    def step(unread: Tensor) -> Tensor:
        nonlocal read
        read = unread if caches is not None else torch.cat([read, unread], 1)
        logits: Tensor = decoder(read, caches=caches)
        return logits[:, -1]

    return _sample(step, tokens, max_new_tokens, temperature=temperature, top_k=top_k, generator=generator)


@checked
def continue_text(
    folder: str | Path, prompt: str, max_new_tokens: int, *, temperature: float, top_k: int | None, seed: int
) -> Iterator[str]:
    """Continue a text with a model in transformers' format, one of the families here or another.

    Args:
        folder: what `save_pretrained` wrote. Without a tokenizer in it, tokens are bytes: 256 of them.
        prompt: text to continue.
        max_new_tokens: how many tokens to add; an end-of-text token ends sooner.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample among the k most likely only.
        seed: of the choices.
    Yields:
        Text, as soon as its characters are whole; the prompt is not repeated.
    Raises:
        ValueError: no model in that folder, or neither a tokenizer nor bytes; see also `generate`.
        MissingExtraError: transformers is not installed.
    """
    _check_choices(max_new_tokens, temperature, top_k)
    model, encode, decode, ends = load_text_model(Path(folder))
    past: Any = None

    def step(unread: Tensor) -> Tensor:
        nonlocal past
        out = model(unread, past_key_values=past, use_cache=True)
        past = out.past_key_values
        return cast("Tensor", out.logits[:, -1])

    tokens, generator = torch.tensor([encode(prompt or "\n")]), torch.Generator().manual_seed(seed)
    written: list[int] = []
    text = ""
    for token in _sample(step, tokens, max_new_tokens, temperature=temperature, top_k=top_k, generator=generator):
        if token.item() in ends:
            break
        written.append(int(token))
        whole = decode(written)
        if not whole.endswith("\ufffd"):  # the rest of a character may follow
            yield whole[len(text) :]
            text = whole
    yield decode(written)[len(text) :]


def load_text_model(
    folder: Path,
) -> tuple[Any, Callable[[str], list[int]], Callable[[list[int]], str], list[int]]:
    """Model, text to tokens, tokens to text, and the tokens that end a text.

    Args:
        folder: what `save_pretrained` wrote. Without a tokenizer in it, tokens are bytes: 256 of them.
    Raises:
        ValueError: no model in that folder, or neither a tokenizer nor bytes.
        MissingExtraError: transformers is not installed.
    """
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds no model in transformers' format: there is no config.json in it.")
    from attensor.models.language._transformers import AutoModelForCausalLM, AutoTokenizer

    import_families()
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    if (folder / "tokenizer_config.json").exists():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        ends = torch.tensor([] if model.config.eos_token_id is None else model.config.eos_token_id).flatten()
        return model, tokenizer.encode, tokenizer.decode, ends.tolist()
    if model.config.vocab_size != 256:
        raise ValueError(
            f"{folder} has no tokenizer, and the model's {model.config.vocab_size} tokens are not the 256 bytes; save "
            "the tokenizer beside it with tokenizer.save_pretrained(folder)."
        )
    return model, lambda text: list(text.encode()), lambda tokens: bytes(tokens).decode("utf-8", "replace"), []


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


def _check_choices(max_new_tokens: int, temperature: float, top_k: int | None) -> None:
    if max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must be at least 0, got {max_new_tokens}.")
    if temperature < 0:
        raise ValueError(f"generate: temperature must be at least 0, got {temperature}; 0 takes the most likely token.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k must be at least 1, got {top_k}; None samples among all tokens.")


@torch.no_grad()
def _sample(
    step: Callable[[Tensor], Tensor],
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """[B] at a time; `step` maps the tokens it has not read yet to the logits [B, V] of the next."""
    for _ in range(max_new_tokens):
        chosen = _choose(step(tokens), temperature, top_k, generator)
        yield chosen
        tokens = chosen[:, None]


def _choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / float(temperature)
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


def import_families() -> None:
    """Import every family, so that transformers' Auto classes know it.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__package__}.{module.name}")
