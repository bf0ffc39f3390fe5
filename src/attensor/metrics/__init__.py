"""Measures of results: `retrieval` (rankings), `intervals` (how sure a mean is). Needs torch, nothing of attensor."""
