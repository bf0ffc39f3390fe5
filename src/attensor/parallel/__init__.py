"""Layers over several processes, each with a part of the weights and of the cache, on torch.distributed.

    layer = parallel.shard(layer)        in every process of `torchrun`; the same call convention, a part of the cache
    parallel.shard_layers(model)         every latent attention of a model, in place

`import attensor` does not load this: nobody pays for what one process has no use for.
"""

from __future__ import annotations

from attensor.parallel.groups import Ranks as Ranks
from attensor.parallel.latent import ShardedLatentAttention as ShardedLatentAttention
from attensor.parallel.launch import on_ranks as on_ranks
from attensor.parallel.shard import shard as shard
from attensor.parallel.shard import shard_layers as shard_layers
from attensor.parallel.split import Place as Place
from attensor.parallel.split import split_state_dict as split_state_dict
from attensor.parallel.tokens import TokenShardedLatentAttention as TokenShardedLatentAttention
from attensor.parallel.tokens import merge_over as merge_over
