"""Rows to compare the models with that are no neural networks: what counting, a compressor or a glance scores.

They learn from the training side, and are scored on the bytes or images of the test that the models are scored on.
"""

from __future__ import annotations

from attensor.compare.references.images import image_references
from attensor.compare.references.reference import Reference
from attensor.compare.references.text import text_references

__all__ = ["Reference", "image_references", "text_references"]
