"""Train the small causal byte model of docs/swapping.md: a Llama of transformers on Python's standard library.

`python tools/train_byte_model.py FOLDER MINUTES`
"""

from __future__ import annotations

import itertools
import math
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from attensor.data.text import open_text

PEAK, LENGTH = 4e-3, 192


def main(folder: str, minutes: float) -> None:
    """Train for so many minutes and save the model."""
    torch.manual_seed(0)
    data = open_text("stdlib", minimum_bytes=1024)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 4, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, tie_word_embeddings=True, **sizes, **ends))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.1)
    start = time.monotonic()
    for step in itertools.count():
        gone = (time.monotonic() - start) / (60 * minutes)
        if gone >= 1:
            break
        optimizer.param_groups[0]["lr"] = PEAK * min(1, (step + 1) / 20) * min(1.0, (1 - gone) / 0.7)
        tokens = data.batch(step, seed=0, batch_size=12, length=LENGTH)[:, :LENGTH]
        loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            sys.stdout.write(f"step {step}: {loss.item() / math.log(2):.2f} bits per byte\n")
    model.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
