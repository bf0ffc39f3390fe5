"""Edits of trained models and their checkpoints."""

from attensor.edit.align import align as align
from attensor.edit.align import distill as distill
from attensor.edit.checkpoint import load_swapped as load_swapped
from attensor.edit.checkpoint import save_swapped as save_swapped
from attensor.edit.controls import ControlAttention as ControlAttention
from attensor.edit.gqa_to_latent import gqa_to_latent as gqa_to_latent
from attensor.edit.gqa_to_latent import input_moments as input_moments
from attensor.edit.rotate import latent_moments as latent_moments
from attensor.edit.rotate import rotate_latent as rotate_latent
from attensor.edit.rotate import rotation as rotation
from attensor.edit.rotate_folder import load_slicings as load_slicings
from attensor.edit.swap import restore as restore
from attensor.edit.swap import swap as swap
from attensor.edit.tpla import apply_slicings as apply_slicings
from attensor.edit.tpla import score_moments as score_moments
from attensor.edit.tpla import slicing_options as slicing_options
from attensor.edit.tpla import to_tpla as to_tpla
