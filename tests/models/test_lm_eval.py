"""lm-evaluation-harness scores our models through its wrapper of Hugging Face models, offline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models.families import build

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

pytestmark = pytest.mark.slow  # the import alone takes seconds


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, made in memory: no file to fetch."""
    vocabulary = {"<pad>": 0, "</s>": 1}
    vocabulary |= {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=2)}
    made = Tokenizer(models.BPE(vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


def _wrap(model: Any, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=64)


def _requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def _score(model: Any, tokenizer: PreTrainedTokenizerFast, context: str, continuation: str) -> float:
    """Log-probability of the continuation, from the model alone."""
    first, then = (torch.tensor(tokenizer.encode(part)) for part in (context, continuation))
    logits = model(torch.cat([first, then])[None]).logits[0, len(first) - 1 : -1]
    return logits.log_softmax(-1).gather(1, then[:, None]).sum().item()


@pytest.mark.parametrize("variant", ["gla", "transnormer"])
def test_scores_of_a_batch_are_the_log_likelihoods(variant: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build(variant, dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=1)
    pairs = [("The cat", " sat"), ("A", " dog barked"), ("once upon", " a time there")]
    wrapped = _wrap(model, tokenizer, batch_size=3)
    with torch.no_grad():
        expected = [_score(model, tokenizer, *pair) for pair in pairs]
        rolling = _score(model, tokenizer, "</s>", "hello world")
    scored = wrapped.loglikelihood(_requests("loglikelihood", *pairs), disable_tqdm=True)
    assert [score for score, _ in scored] == pytest.approx(expected, rel=1e-4)
    assert wrapped.loglikelihood_rolling(
        _requests("loglikelihood_rolling", ("hello world",)), disable_tqdm=True
    ) == pytest.approx([rolling], rel=1e-4)


@pytest.mark.parametrize("variant", ["gla", "transnormer"])
def test_generation_of_a_batch_is_that_of_each_prompt(variant: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build(variant, dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=1)
    prompts = [("ab", {"until": ["zz"], "max_gen_toks": 6, "do_sample": False}), ("abcdefg", {"until": ["zz"]})]
    prompts[1][1].update(prompts[0][1])
    together, alone = (
        _wrap(model, tokenizer, size).generate_until(_requests("generate_until", *prompts), disable_tqdm=True)
        for size in (2, 1)
    )
    assert together == alone
    assert any(together)
