"""The names of transformers that the models here use: the only place that imports it.

Written against 5.20 and later. A caller without transformers learns which extra brings it.
"""

from __future__ import annotations

from attensor.errors import require

try:
    from transformers import AutoConfig as AutoConfig
    from transformers import AutoModel as AutoModel
    from transformers import AutoModelForCausalLM as AutoModelForCausalLM
    from transformers import AutoModelForSequenceClassification as AutoModelForSequenceClassification
    from transformers import AutoTokenizer as AutoTokenizer
    from transformers import GenerationMixin as GenerationMixin
    from transformers import PreTrainedConfig as PreTrainedConfig
    from transformers import PreTrainedModel as PreTrainedModel
    from transformers.cache_utils import Cache as Cache
    from transformers.cache_utils import CacheLayerMixin as CacheLayerMixin
    from transformers.cache_utils import StaticCache as StaticCache
    from transformers.modeling_layers import GenericForSequenceClassification as GenericForSequenceClassification
    from transformers.modeling_layers import GradientCheckpointingLayer as GradientCheckpointingLayer
    from transformers.modeling_outputs import BaseModelOutputWithPast as BaseModelOutputWithPast
    from transformers.modeling_outputs import CausalLMOutputWithPast as CausalLMOutputWithPast
    from transformers.utils.generic import can_return_tuple as can_return_tuple
except ImportError:
    require("transformers", purpose="A language model in transformers' conventions")
    raise
