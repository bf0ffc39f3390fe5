"""Tests of `attensor.lens`."""
