"""Attention in other people's models: find it, look at it, put another in its place.

    found = sites.find_sites(model)                       transformers, timm, torch.nn.MultiheadAttention, attensor
    with sites.capture(found, ["q", "k", "out"]) as seen:
        model(batch)
    sites.replace(found[3], layer)                        a layer of attensor; found[3].restore() undoes it
    with sites.attention_function(model, "mine", f):      f(q, k, v, ..) in the place of transformers' kernel
        model(batch)

This package is the one door to modules of other libraries, and imports none of them.
"""

from attensor.sites.capture import Captured as Captured
from attensor.sites.capture import capture as capture
from attensor.sites.find import find_sites as find_sites
from attensor.sites.find import replace as replace
from attensor.sites.function import AttentionFunction as AttentionFunction
from attensor.sites.function import attention_function as attention_function
from attensor.sites.site import AttentionSite as AttentionSite
from attensor.sites.weights import AttentionWeights as AttentionWeights
