"""Attention in models of other libraries."""
