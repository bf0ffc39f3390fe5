"""What the C++ kernels of all operators share: their build, the library, tensors as C++ reads them, headers."""
