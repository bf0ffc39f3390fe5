"""Layers: projections, positions, gates and decode caches around the operators of `attensor.ops`.

A mixer layer is found through its card in the catalogue: `attensor.nn.GatedLinearAttention` exists because
`attensor/cards/gla.py` names it. What several layers share is exported here by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attensor import catalogue
from attensor.nn.attention_weights import AttentionWeights as AttentionWeights
from attensor.nn.cache import Cache as Cache
from attensor.nn.cache import StateCache as StateCache
from attensor.nn.cache import TokenCache as TokenCache
from attensor.nn.features import LearnedFeatures as LearnedFeatures
from attensor.nn.features import RandomFeatures as RandomFeatures
from attensor.nn.head_router import load_balance_loss as load_balance_loss
from attensor.nn.joint_cache import JointCache as JointCache
from attensor.nn.l2vit import LocalConcentration as LocalConcentration
from attensor.nn.latent import Slicing as Slicing
from attensor.nn.mixer import Heads as Heads
from attensor.nn.mixer import Mixer as Mixer
from attensor.nn.mixer import SequenceMixer as SequenceMixer
from attensor.nn.padding import pad as pad
from attensor.nn.padding import unpad as unpad
from attensor.nn.rotary import Frequencies as Frequencies
from attensor.nn.rotary import Yarn as Yarn
from attensor.nn.rotary import grid_rotary_embedding as grid_rotary_embedding
from attensor.nn.rotary import rotary_embedding as rotary_embedding
from attensor.nn.rotary import token_positions as token_positions
from attensor.nn.window_grid import RelativePositionBias as RelativePositionBias

if TYPE_CHECKING:  # for editors and type checkers only; at run time a card is enough
    from attensor.nn.aggregated import AggregatedAttention as AggregatedAttention
    from attensor.nn.aggregated import CosineAttention as CosineAttention
    from attensor.nn.axial import AxialAttention as AxialAttention
    from attensor.nn.gated_delta import GatedDeltaNet as GatedDeltaNet
    from attensor.nn.gated_linear import GatedLinearAttention as GatedLinearAttention
    from attensor.nn.gated_linear import ScalarGatedLinearAttention as ScalarGatedLinearAttention
    from attensor.nn.grouped_latent import GroupedLatentAttention as GroupedLatentAttention
    from attensor.nn.key_scored import KeyScoredAttention as KeyScoredAttention
    from attensor.nn.l2vit import GlobalLinearAttention as GlobalLinearAttention
    from attensor.nn.latent import LatentAttention as LatentAttention
    from attensor.nn.lightning import LightningAttention as LightningAttention
    from attensor.nn.linear_attention import LinearAttention as LinearAttention
    from attensor.nn.mixture_of_heads import MixtureOfHeads as MixtureOfHeads
    from attensor.nn.neighborhood import NeighborhoodAttention as NeighborhoodAttention
    from attensor.nn.no_mixing import NoMixing as NoMixing
    from attensor.nn.power_law_graph import PowerLawGraphAttention as PowerLawGraphAttention
    from attensor.nn.rank_augmented import RankAugmentedLinearAttention as RankAugmentedLinearAttention
    from attensor.nn.relative_kernel_attention import RelativeKernelAttention as RelativeKernelAttention
    from attensor.nn.sliding_window import SlidingWindowAttention as SlidingWindowAttention
    from attensor.nn.softmax_attention import SoftmaxAttention as SoftmaxAttention
    from attensor.nn.taylor_attention import TaylorAttention as TaylorAttention
    from attensor.nn.transnormer import TransNormerAttention as TransNormerAttention
    from attensor.nn.window_grid import WindowGridAttention as WindowGridAttention


def __getattr__(name: str) -> Any:
    layers = catalogue.parts(__name__, "layers")
    if name.startswith("_") or name not in layers:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its layers are {', '.join(layers)}")
    return catalogue.load(layers[name])


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if not name.startswith("_")), *catalogue.parts(__name__, "layers")})
