"""Measures of results: `retrieval` (rankings), `intervals` (how sure a mean is); of attensor only the checks."""
