"""Measures of results: rankings, and how sure a mean is. Needs torch only, and nothing else of attensor."""

from __future__ import annotations

from attensor.metrics.intervals import Interval as Interval
from attensor.metrics.intervals import SignFlip as SignFlip
from attensor.metrics.intervals import bootstrap_interval as bootstrap_interval
from attensor.metrics.intervals import sign_flip_test as sign_flip_test
from attensor.metrics.intervals import t_interval as t_interval
from attensor.metrics.retrieval import average_precision as average_precision
from attensor.metrics.retrieval import cumulative_matches as cumulative_matches
from attensor.metrics.retrieval import first_ranks as first_ranks
from attensor.metrics.retrieval import hits_at as hits_at
from attensor.metrics.retrieval import mean_average_precision as mean_average_precision
from attensor.metrics.retrieval import mean_reciprocal_rank as mean_reciprocal_rank
from attensor.metrics.retrieval import ranks as ranks

__all__ = [
    "Interval",
    "SignFlip",
    "average_precision",
    "bootstrap_interval",
    "cumulative_matches",
    "first_ranks",
    "hits_at",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "ranks",
    "sign_flip_test",
    "t_interval",
]
