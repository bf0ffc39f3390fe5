// Users' tensors, in any strides and storage type, to tiles and back; and work shared out to threads.
#pragma once

#include <atomic>
#include <cmath>
#include <exception>
#include <system_error>
#include <thread>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "layout.h"
#include "tile.h"

namespace attensor {

enum Storage : int32_t { kFloat32 = 0, kFloat64 = 1, kBfloat16 = 2 };

// A tensor [B, T, H, D] whose last dimension is contiguous; steps count elements. No data: the tensor is absent.
struct Tensor {
  void* data;
  int64_t batch, token, head;
  int32_t storage;
};

inline float from_bfloat16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint16_t to_bfloat16(float x) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline int bytes_of(int32_t storage) { return storage == kFloat64 ? 8 : storage == kFloat32 ? 4 : 2; }

// Have rows brought into the cache, those that `read_rows` or `write_rows` will meet with these arguments.
inline void expect_rows(const Tensor& x, int64_t batch, int64_t first, int64_t head, int rows, int columns,
                        bool is_written = false) {
  const int size = bytes_of(x.storage);
  const char* data = static_cast<const char*>(x.data) + (batch * x.batch + first * x.token + head * x.head) * size;
  Prefetch::of_thread().add(data, x.token * size, rows, columns * size, is_written);
}

// Tokens `first` to `first + rows` of one batch entry and head, times `scale`, as rows of a tile.
template <class T>
void read_rows(const Tensor& x, int64_t batch, int64_t first, int64_t head, int rows, int columns, T scale,
               const Tile<T>& out) {
  const int64_t start = batch * x.batch + first * x.token + head * x.head;
  for (int i = 0; i < rows; ++i) {
    const int64_t at = start + i * x.token;
    T* __restrict__ row = out.row(i);
    if (x.storage == kFloat32)
      for (int c = 0; c < columns; ++c) row[c] = scale * static_cast<const float*>(x.data)[at + c];
    else if (x.storage == kFloat64)
      for (int c = 0; c < columns; ++c) row[c] = scale * static_cast<const double*>(x.data)[at + c];
    else
      for (int c = 0; c < columns; ++c) row[c] = scale * from_bfloat16(static_cast<const uint16_t*>(x.data)[at + c]);
  }
}

template <class T>
void write_rows(const Tile<T>& in, const Tensor& x, int64_t batch, int64_t first, int64_t head, int rows, int columns) {
  const int64_t start = batch * x.batch + first * x.token + head * x.head;
  for (int i = 0; i < rows; ++i) {
    const int64_t at = start + i * x.token;
    const T* __restrict__ row = in.row(i);
    if (x.storage == kFloat32)
      for (int c = 0; c < columns; ++c) static_cast<float*>(x.data)[at + c] = row[c];
    else if (x.storage == kFloat64)
      for (int c = 0; c < columns; ++c) static_cast<double*>(x.data)[at + c] = row[c];
    else
      for (int c = 0; c < columns; ++c) static_cast<uint16_t*>(x.data)[at + c] = to_bfloat16(row[c]);
  }
}

// Where results for these rows go at once: the user's memory if it can take whole vectors, else `otherwise`.
template <class T>
Tile<T> place(const Tensor& x, int64_t batch, int64_t first, int64_t head, int columns, const Tile<T>& otherwise) {
  if (bytes_of(x.storage) != sizeof(T) || columns % Simd<T>::lanes) return otherwise;
  return {static_cast<T*>(x.data) + batch * x.batch + first * x.token + head * x.head, static_cast<int>(x.token)};
}

// Ask the system for large pages under a result that is about to be written for the first time: handing it out in small
// ones was measured to take a quarter of a call. A hint: where it is not heeded, nothing changes.
inline void expect_results(const void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 4096, large = uintptr_t{1} << 21;
  const uintptr_t start = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  if (data && bytes > static_cast<int64_t>(2 * large))
    madvise(reinterpret_cast<void*>(start), (bytes - page) / page * page, MADV_HUGEPAGE);
#endif
}

// A contiguous matrix, as a tile without padding.
template <class T>
Tile<T> matrix(void* data, int64_t number, int rows, int columns) {
  return {static_cast<T*>(data) + number * rows * columns, columns};
}

template <class T>
void copy_rows(const Tile<T>& from, const Tile<T>& to, int rows, int columns) {
  for (int i = 0; i < rows; ++i) std::memcpy(to.row(i), from.row(i), sizeof(T) * columns);
}

// task(0) to task(count - 1) on so many threads, the calling one among them. False when one of them failed.
template <class Task>
bool run_tasks(int64_t count, int threads, const Task& task) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> is_good{true};
  const auto work = [&] {
    try {
      for (int64_t number; (number = next++) < count && is_good;) task(number);
    } catch (const std::exception&) {
      is_good = false;
    }
  };
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) others.emplace_back(work);
  } catch (const std::system_error&) {
    // there are no more threads: those that there are do the work
  }
  work();
  for (std::thread& thread : others) thread.join();
  return is_good;
}

}  // namespace attensor
