"""GPU kernels written in Triton, one folder an operator; nothing here is imported before a `triton` back-end runs."""
