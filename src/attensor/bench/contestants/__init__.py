"""The benchmarks: one file a problem, with its sizes, its peers and its tables."""

from __future__ import annotations
