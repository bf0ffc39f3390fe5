"""Looks into trained models: what their parts conclude and hold, as numbers and pictures."""
