"""What the ranks of a test do, and the layers that they share; a module that new processes import."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode

from attensor import parallel
from attensor.errors import RankError
from attensor.models.language import Decoder, DecoderConfig
from attensor.nn import LatentAttention, Slicing

# pairwise different, as far as they can be
SIZES: dict[str, Any] = {"kv_rank": 16, "q_rank": 12, "nope_dim": 6, "rotary_dim": 4, "value_dim": 5}
HIDDEN, HEADS, ROWS = 24, 8, 3
PIECES = {"prompt": 7, "step": 1, "second": 1, "piece": 3, "third": 1}  # tokens of each call with one cache
SLICINGS = {
    2: Slicing(2, (1.7, 2.6), (1.0, 1.3)),
    4: Slicing(4, (3.0, 4.5, 4.0, 5.0)),
}


def layer(slicing: Slicing | None = None, **sizes: Any) -> LatentAttention:
    """The same weights every time, with a norm whose weight is not 1."""
    torch.manual_seed(5)
    made = LatentAttention(HIDDEN, HEADS, slicing=slicing, dtype=torch.float64, **SIZES | sizes)
    with torch.no_grad():
        made.kv_a_layernorm.weight.uniform_(0.5, 1.5)
    return made


def model(slicing: Slicing | None = None) -> Decoder:
    torch.manual_seed(6)
    sizes: dict[str, Any] = SIZES | {"q_rank": None}
    return Decoder(
        DecoderConfig(31, HIDDEN, 2, HEADS, 20), lambda _: LatentAttention(HIDDEN, HEADS, slicing=slicing, **sizes)
    ).double()


def inputs() -> dict[str, Tensor]:
    """[B, T, C] of each call."""
    made = torch.randn(ROWS, sum(PIECES.values()), HIDDEN, generator=torch.Generator().manual_seed(7)).double()
    return dict(zip(PIECES, made.split(list(PIECES.values()), 1), strict=True))


TOKENS = torch.arange(ROWS * 9).view(ROWS, 9) % 31
PADDING = torch.tensor([0, 2, 1])


@torch.no_grad()
def run(attention: LatentAttention, *, padding: Tensor | None = None) -> dict[str, Tensor]:
    """Outputs of all calls with one cache, which loses a row's order on the way."""
    cache, found = attention.new_cache(ROWS), {}
    if padding is not None:
        cache.first = padding
    for name, x in inputs().items():
        with counted() as calls:
            found[name] = attention(x, cache=cache)
        found[f"calls, {name}"] = torch.tensor(calls, dtype=torch.int64).view(-1, 3)
        if name == "step":
            cache.reorder(torch.tensor([2, 0, 1]))
    found["nbytes"] = torch.tensor(cache.nbytes)
    found["held"] = cache.state_dict()["latent"]
    return found


@torch.no_grad()
def packed(attention: LatentAttention) -> Tensor:
    """Sequences of 0, 5, 1 and 7 tokens in one row."""
    out: Tensor = attention(torch.cat(list(inputs().values()), 1)[:1], cu_seqlens=torch.tensor([0, 0, 5, 6, 13]))
    return out


@torch.no_grad()
def logits(decoder: Decoder) -> dict[str, Tensor]:
    caches = decoder.new_caches(ROWS)
    return {"prompt": decoder(TOKENS[:, :8], caches=caches), "step": decoder(TOKENS[:, 8:], caches=caches)}


KINDS = ("allreduce_", "_allgather_base_")


@contextmanager
def counted() -> Iterator[list[list[int]]]:
    """Calls between ranks, of any kind: number of the kind (-1: another), elements sent, bytes sent."""
    calls: list[list[int]] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "c10d" in function.namespace:
                name = function._schema.name.partition("::")[2]
                tensors = args[1] if name == "_allgather_base_" else args[0]
                sent = [tensors] if isinstance(tensors, Tensor) else list(tensors)
                kind = KINDS.index(name) if name in KINDS else -1
                calls.append([kind, sum(t.numel() for t in sent), sum(t.nbytes for t in sent)])
            return function(*args, **(kwargs or {}))

    with Count():
        yield calls


def all_scenes() -> bytes:
    """Of four ranks: pairs of them with two slices and with none, all with two and four; as safetensors."""
    rank = dist.get_rank()
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    pair = pairs[rank // 2]
    scenes = {
        "2 ranks, 2 slices": run(parallel.shard(layer(SLICINGS[2]), pair)),
        "2 ranks, 1 slice": run(parallel.shard(layer(), DeviceMesh.from_group(pair, "cpu"))),
        "2 ranks, padded": run(parallel.shard(layer(SLICINGS[2]), pair), padding=PADDING),
        "4 ranks, 2 slices": run(parallel.shard(layer(SLICINGS[2]))),
        "4 ranks, 4 slices": run(parallel.shard(layer(SLICINGS[4]))),
        "4 ranks, 1 slice": run(parallel.shard(layer(SLICINGS[2]), groups=1)),
        "model": logits(parallel.shard_layers(model(SLICINGS[2]), pair)),
        "2 ranks, tokens": run(parallel.shard(layer(), pair, by="tokens")),
        "4 ranks, tokens": run(parallel.shard(layer(SLICINGS[2]), by="tokens")),
        "2 ranks, tokens, padded": run(parallel.shard(layer(), pair, by="tokens"), padding=PADDING),
        "4 ranks, tokens, packed": {"out": packed(parallel.shard(layer(), by="tokens"))},
        "model by tokens": logits(parallel.shard_layers(model(), pair, by="tokens")),
    }
    found = {f"{scene}: {name}": tensor for scene, tensors in scenes.items() for name, tensor in tensors.items()}
    found["late"] = torch.frombuffer(bytearray(late(rank).encode()), dtype=torch.uint8)
    return save(found)


def late(rank: int) -> str:
    """What rank 0 says of rank 1, which does not come in time."""
    group = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=2.0))
    if rank > 1:
        return "-"
    if rank == 1:
        time.sleep(3.0)
        return "-"
    try:
        parallel.shard(layer(), group)(inputs()["prompt"])
    except RankError as error:
        return str(error)
    return "nothing was said"


def loaded(found: bytes) -> dict[str, Tensor]:
    return load(found)


def leave() -> None:
    """Rank 1 ends in the middle of a decoding."""
    sharded = parallel.shard(layer(SLICINGS[2]))
    cache = sharded.new_cache(ROWS)
    sharded(inputs()["prompt"], cache=cache)
    if dist.get_rank() == 1:
        os._exit(3)
    sharded(inputs()["step"], cache=cache)


def sleep(folder: str) -> None:
    """Say who is there, and stay."""
    with open(f"{folder}/{dist.get_rank()}", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    time.sleep(60)
