"""CPU kernels written in C++. An import compiles nothing; the first call that wants one does, once on a machine."""
