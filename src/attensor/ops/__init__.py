"""Operators: pure functions on tensors, heads last, one calling convention.

Every operator has a reference of the same signature, the shortest code that is obviously the equation.
"""

from attensor.ops._native.build import kernels_form as kernels_form
from attensor.ops._operator import OPERATORS as OPERATORS
from attensor.ops._operator import Implementation as Implementation
from attensor.ops._operator import Operator as Operator
from attensor.ops._operator import backend as backend
from attensor.ops.block_attention import block_attention as block_attention
from attensor.ops.block_attention import block_attention_reference as block_attention_reference
from attensor.ops.channel_attention import channel_attention as channel_attention
from attensor.ops.channel_attention import channel_attention_reference as channel_attention_reference
from attensor.ops.feature_maps import FEATURE_MAPS as FEATURE_MAPS
from attensor.ops.feature_maps import PositiveRandomFeatures as PositiveRandomFeatures
from attensor.ops.feature_maps import TaylorFeatures as TaylorFeatures
from attensor.ops.feature_maps import TrigonometricRandomFeatures as TrigonometricRandomFeatures
from attensor.ops.gated_delta_rule import gated_delta_rule as gated_delta_rule
from attensor.ops.gated_delta_rule import gated_delta_rule_reference as gated_delta_rule_reference
from attensor.ops.halo_attention import halo_attention as halo_attention
from attensor.ops.halo_attention import halo_attention_reference as halo_attention_reference
from attensor.ops.kernel_attention import Denominator as Denominator
from attensor.ops.kernel_attention import kernel_attention as kernel_attention
from attensor.ops.kernel_attention import kernel_attention_reference as kernel_attention_reference
from attensor.ops.kernel_attention import kernel_attention_step as kernel_attention_step
from attensor.ops.kernel_attention import kernel_attention_step_reference as kernel_attention_step_reference
from attensor.ops.latent_attention import latent_attention as latent_attention
from attensor.ops.latent_attention import latent_attention_reference as latent_attention_reference
from attensor.ops.linear_attention import linear_attention as linear_attention
from attensor.ops.linear_attention import linear_attention_reference as linear_attention_reference
from attensor.ops.linear_attention import linear_attention_step as linear_attention_step
from attensor.ops.linear_attention import linear_attention_step_reference as linear_attention_step_reference
from attensor.ops.merge import merge_attention as merge_attention
from attensor.ops.merge import merge_attention_reference as merge_attention_reference
from attensor.ops.neighborhood_attention import neighborhood_attention as neighborhood_attention
from attensor.ops.neighborhood_attention import neighborhood_attention_reference as neighborhood_attention_reference
from attensor.ops.pointer_scores import pointer_scores as pointer_scores
from attensor.ops.pointer_scores import pointer_scores_reference as pointer_scores_reference
from attensor.ops.power_law_operator import power_law_operator as power_law_operator
from attensor.ops.power_law_operator import power_law_operator_reference as power_law_operator_reference
from attensor.ops.relative_kernel_attention import relative_kernel_attention as relative_kernel_attention
from attensor.ops.relative_kernel_attention import (
    relative_kernel_attention_reference as relative_kernel_attention_reference,
)
from attensor.ops.routed_attention import routed_attention as routed_attention
from attensor.ops.routed_attention import routed_attention_reference as routed_attention_reference
from attensor.ops.softmax_attention import softmax_attention as softmax_attention
from attensor.ops.softmax_attention import softmax_attention_reference as softmax_attention_reference
from attensor.ops.toeplitz import toeplitz as toeplitz
from attensor.ops.toeplitz import toeplitz_reference as toeplitz_reference
