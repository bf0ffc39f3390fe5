"""Whatever is public refuses an argument of another kind by its name, before anything else is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch

from attensor import edit, nn, ops, parallel, sites, train
from attensor.edit import controls, task, trial
from attensor.edit.align import transfer
from attensor.errors import RoomError
from attensor.lens import decode, indicators, operator
from attensor.metrics import classification, intervals, polygons, receptive_field, retrieval, scanpath
from attensor.models import convert, create
from attensor.models.knowledge import memory, saved
from attensor.models.knowledge.scorers import ComplEx, ScorerConfig
from attensor.models.knowledge.tensor_brain import TensorBrain, TensorBrainConfig
from attensor.models.language import CountedDecoder, Decoder, DecoderConfig
from attensor.models.language import convert as language_convert
from attensor.models.pointing import OAT, OATConfig, PointerNetwork, Seq2SeqBaselines, beam_search
from attensor.models.pointing.pointing import pointing_loss
from attensor.models.vision import Encoder, EncoderConfig, FeatureExtractor, VisionTransformer, ViTConfig
from attensor.models.vision.axial_transformer import AxialTransformer, AxialTransformerConfig
from attensor.models.vision.dit import DiT, DiTConfig
from attensor.ops._kinds import ANYTHING, kinds_of
from attensor.train.brain import BrainSetup
from attensor.train.image import ImageSetup
from attensor.train.image_recipe import ImageRecipe
from attensor.train.points import PointTraining, build
from attensor.train.scanpaths import ScanpathSetup, ScanpathTraining
from attensor.train.triples import filtered_ranks, one_to_n_loss

LANGUAGE = (CountedDecoder, Decoder, DecoderConfig)
VISION = (Encoder, EncoderConfig, FeatureExtractor, VisionTransformer, ViTConfig)
VISION = (*VISION, AxialTransformer, AxialTransformerConfig, DiT, DiTConfig)
KNOWLEDGE = (ComplEx, ScorerConfig, TensorBrain, TensorBrainConfig)
POINTING = (OAT, OATConfig, PointerNetwork, Seq2SeqBaselines, beam_search, pointing_loss)
TRAINING = (BrainSetup, one_to_n_loss, filtered_ranks, build)
TRAINING = (*TRAINING, PointTraining, ScanpathSetup, ScanpathTraining, ImageSetup, ImageRecipe)
EDITS = (transfer, controls.controls, task.byte_tokens, task.tokens_of, trial.TrialOptions, trial.try_swap)
MODULES = (edit, nn, ops, sites, indicators, operator, classification, intervals, receptive_field, retrieval)
MODULES = (*MODULES, parallel, train, decode, polygons, scanpath, convert, memory, saved, language_convert)
# protocols, and tuples and records of results, which users read; settings that are looked at by hand
APART = {"Cache", "Mixer", "SequenceMixer", "Heads", "Implementation", "Operator", "AttentionSite", "AttentionWeights"}
APART |= {
    "Captured",
    "Indicators",
    "HeadReading",
    "LayerReading",
    "ReceptiveField",
    "Interval",
    "SignFlip",
    "Denominator",
    "AttentionFunction",
}
APART |= {"JointCache", "Any", "kernels_form", "backend"}
APART |= {
    "Point",
    "Progress",
    "Training",
    "Diverged",
    "Stopped",
    "Rule",
    "need_options",
    "Vocabulary",
    "StepReading",
    "DecodeReading",
}
APART |= {"PositiveRandomFeatures", "TrigonometricRandomFeatures", "TaylorFeatures"}


def _public() -> Iterator[Callable[..., Any]]:
    for module in MODULES:
        for name in getattr(module, "__all__", None) or dir(module):
            made = getattr(module, name)
            if not name.startswith("_") and callable(made) and name not in APART:
                yield made
    yield from (create, *LANGUAGE, *VISION, *KNOWLEDGE, *POINTING, *TRAINING, *EDITS)


@pytest.mark.parametrize("public", list(_public()), ids=lambda public: public.__name__)
def test_every_argument_is_refused_by_its_name(public: Callable[..., Any]) -> None:
    function = public.__init__ if isinstance(public, type) else public
    kinds = {name: kind for name, kind in kinds_of(function).items() if kind.expected != ANYTHING.expected}
    kinds.pop("return", None)
    assert kinds or public.__name__ == "NoMixing"
    for name in kinds:
        with pytest.raises(
            (TypeError, ValueError), match=rf"{public.__name__.removesuffix('_reference')}: {name} must "
        ):
            public(**{name: object()})


@pytest.mark.parametrize("device", ["cuda:77", "cpuu", 2**63, 2.5])
def test_a_device_that_is_not_there_is_refused(device: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="SoftmaxAttention: device must be a device of this machine"):
        nn.SoftmaxAttention(12, 3, device=device)


@pytest.mark.parametrize("number", [2**63, -(2**64), 10**30])
def test_an_integer_has_64_bits(number: int) -> None:
    with pytest.raises(TypeError, match=r"SlidingWindowAttention: window_size must be an integer, got .* of 64 bits"):
        nn.SlidingWindowAttention(12, 3, window_size=number)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.SoftmaxAttention(2**40, 1), "SoftmaxAttention: hidden_size 1099511627776, num_heads 1"),
        (lambda: nn.RelativePositionBias(2**31, 1), "RelativePositionBias: num_heads 2147483648, block_size 1"),
        (lambda: nn.LearnedFeatures(4, 2**31), "LearnedFeatures: key_dim 4, num_features 2147483648"),
        (
            lambda: ops.block_attention(*[torch.zeros(0, 7, 5, 1, 3)] * 3, pattern="window", block_size=2**31),
            "block_size",
        ),
        (lambda: nn.Retention(12, 3).new_cache(2**50), "StateCache: batch_size 1125899906842624"),
    ],
)
def test_sizes_beyond_the_memory_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(RoomError, match=message) as caught:
        call()
    assert isinstance(caught.value, MemoryError)


def test_a_method_is_named_by_the_class_that_is_called() -> None:
    layer = nn.SlidingWindowAttention(12, 3)
    with pytest.raises(TypeError, match=r"^SlidingWindowAttention.new_cache: batch_size must be an integer"):
        layer.new_cache("2")
    with pytest.raises(TypeError, match=r"^TokenCache.crop: length must be an integer"):
        layer.new_cache(2).crop(None)
    with pytest.raises(TypeError, match=r"^Retention.cost_sizes: space must be a tuple of integers"):
        nn.Retention(12, 3).cost_sizes(3)


@pytest.mark.parametrize("huge", [2**62, 2**40])
@pytest.mark.parametrize("integer", [int, numpy.int64])
def test_what_is_computed_of_sizes_does_not_overflow(integer: Callable[[int], Any], huge: int) -> None:
    """Integers of numpy would in silence, and torch then spoke of negative sizes."""
    for kind, options in (
        (nn.GatedDeltaNet, {"expand_v": 2**70, "conv_size": None}),
        (nn.LatentAttention, {"nope_dim": integer(huge)}),
        (nn.SoftmaxAttention, {"head_dim": integer(huge)}),
        (nn.WindowGridAttention, {"block_size": integer(huge)}),
        (nn.NeighborhoodAttention, {"hidden_size": integer(huge)}),
    ):
        with pytest.raises((RoomError, ValueError), match=f"{kind.__name__}: |RelativePositionBias: "):
            kind(**{"hidden_size": integer(12), "num_heads": integer(2), **options})
