// exp of many numbers at once.

#pragma once

#include <cmath>
#include <limits>

#include "tile.h"

namespace attensor {

// exp of padded rows. Below -87, where a normal float ends, it is 0; above 88.37 infinite: what grows without bounds is
// no decay, and must not look like one.
inline void exponentials(const float* x, float* out, int n) {
  typedef Simd<float>::Vector Vector;
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
  for (int c = 0; c < n; c += Simd<float>::lanes) {
    Vector value = load(x + c);
    const Integers is_zero = value < -87.0f;
    value = is_zero ? Vector{} - 87.0f : value;
    const Integers is_infinite = value > 88.37f;
    value = is_infinite ? Vector{} + 88.37f : value;
    const Vector shifted = value * 1.44269504f + 12582912.0f;  // adding 1.5 2^23 rounds to a whole number
    const Vector whole = shifted - 12582912.0f;
    const Vector rest = (value - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Vector sum = Vector{} + 1.9875691500e-4f;  // Cephes' polynomial on [-ln 2 / 2, ln 2 / 2]
    for (const float coefficient :
         {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
      sum = sum * rest + coefficient;
    sum = sum * rest * rest + rest + 1.0f;
    const Integers exponent = (__builtin_convertvector(whole, Integers) + 127) << 23;
    Vector power;
    std::memcpy(&power, &exponent, sizeof power);
    sum = is_infinite ? Vector{} + std::numeric_limits<float>::infinity() : sum * power;
    store(out + c, is_zero ? Vector{} : sum);
  }
}

inline void exponentials(const double* x, double* out, int n) {
  for (int c = 0; c < n; ++c) out[c] = std::exp(x[c]);
}

}  // namespace attensor
