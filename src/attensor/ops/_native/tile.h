// Small dense blocks that stay in a core's cache, and the products between them.
//
// A tile is row-major; its rows are `stride` apart, padded by one vector more than they hold, so that rows of a
// power-of-two width do not fall into the same cache sets. Everything is written once for float and double.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace attensor {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRows = 12;  // 12 x 2 sums, 2 columns and a factor in 32 registers
#elif defined(__AVX2__) || defined(__AVX__)
constexpr int kVectorBytes = 32, kRows = 6;  // 6 x 2 sums in 16 registers
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRows = 12;
#else
constexpr int kVectorBytes = 16, kRows = 6;
#endif

template <class T>
struct Simd {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  typedef T Loose __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));  // at any address
  static constexpr int lanes = kVectorBytes / sizeof(T);
};

template <class T>
inline typename Simd<T>::Vector load(const T* x) {
  return *reinterpret_cast<const typename Simd<T>::Loose*>(x);
}

template <class T>
inline void store(T* x, typename Simd<T>::Vector value) {
  *reinterpret_cast<typename Simd<T>::Loose*>(x) = value;
}

// sum over n of x_n y_n
template <class T>
inline T dot(const T* x, const T* y, int count) {
  typename Simd<T>::Vector sums{};
  int n = 0;
  for (; n + Simd<T>::lanes <= count; n += Simd<T>::lanes) sums += load(x + n) * load(y + n);
  T total = T(0);
  for (; n < count; ++n) total += x[n] * y[n];
  for (int lane = 0; lane < Simd<T>::lanes; ++lane) total += sums[lane];
  return total;
}

inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

template <class T>
struct Tile {
  T* data;
  int stride;
  T* row(int i) const { return data + static_cast<ptrdiff_t>(i) * stride; }
};

// Memory of one thread, taken in pieces by a call and used again by the next one: fresh pages are slow.
class Arena {
 public:
  static Arena& of_thread() {
    thread_local Arena arena;
    arena.used_ = arena.offset_ = 0;
    return arena;
  }

  template <class T>
  T* take(size_t count) {
    const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
    for (; used_ < blocks_.size(); ++used_, offset_ = 0)
      if (offset_ + bytes <= blocks_[used_].size) break;
    if (used_ == blocks_.size()) {
      blocks_.push_back(Block(std::max(bytes, size_t{1} << 20)));
      offset_ = 0;
    }
    T* found = reinterpret_cast<T*>(blocks_[used_].data.get() + offset_);
    offset_ += bytes;
    return found;
  }

  // Zeros, because padding columns are multiplied with (and must not be NaN) though never stored.
  template <class T>
  Tile<T> tile(int rows, int columns) {
    const int stride = round_up(columns, 2 * Simd<T>::lanes) + Simd<T>::lanes;
    T* data = take<T>(static_cast<size_t>(rows) * stride);
    std::memset(data, 0, sizeof(T) * rows * stride);
    return {data, stride};
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  struct Block {
    explicit Block(size_t bytes) : size(bytes), data(static_cast<char*>(std::aligned_alloc(64, bytes))) {
      if (!data) throw std::bad_alloc();
    }
    size_t size;
    std::unique_ptr<char, Free> data;
  };
  std::vector<Block> blocks_;
  size_t used_ = 0, offset_ = 0;
};

// Rows of memory that will be read or written soon. Products ask for one of them at each block of rows, so that they
// arrive while something is computed: heads lie far apart in [B, T, H, D], where no processor foresees the next row.
class Prefetch {
 public:
  static Prefetch& of_thread() {
    thread_local Prefetch prefetch;
    return prefetch;
  }

  void clear() { count_ = 0; }

  void add(const char* row, ptrdiff_t step, int rows, int bytes, bool is_written) {
    if (rows > 0 && count_ < kStreams) streams_[count_++] = {row, step, rows, bytes, is_written};
  }

  void one() {
    if (!count_) return;
    Stream& stream = streams_[count_ - 1];
    for (int at = 0; at < stream.bytes; at += 64) {
      if (stream.is_written)
        __builtin_prefetch(stream.row + at, 1);
      else
        __builtin_prefetch(stream.row + at);
    }
    stream.row += stream.step;
    if (!--stream.rows) --count_;
  }

 private:
  struct Stream {
    const char* row;
    ptrdiff_t step;
    int rows, bytes;
    bool is_written;
  };
  static constexpr int kStreams = 8;
  Stream streams_[kStreams];
  int count_ = 0;
};

// What is done with the old value of a product's destination.
enum class Old { kDrop, kKeep, kScale };

// Which entries of a square factor or result count: all, or those up to the diagonal.
enum class Shape { kFull, kLower };

template <class T>
struct Left {  // the left factor, a(i, p)
  const T* data;
  ptrdiff_t of_row, of_column;  // distance of a(i + 1, p) and of a(i, p + 1)
};

template <class T>
Left<T> plain(const Tile<T>& a) {
  return {a.data, a.stride, 1};
}

template <class T>
Left<T> transposed(const Tile<T>& a) {
  return {a.data, 1, a.stride};
}

// The square on the diagonal of a lower triangular factor, one column of a (transposed: one row) after the other. What
// lies beyond the diagonal is not multiplied, not even by zero: it may be what a token must not see, and not finite.
template <class T, int rows, int columns, bool is_transposed, int p = 0>
inline __attribute__((always_inline)) void add_corner(typename Simd<T>::Vector (&sums)[rows][columns], const T* a,
                                                      ptrdiff_t step, const T* b, ptrdiff_t b_stride) {
  if constexpr (p < rows) {
    for (int i = is_transposed ? 0 : p; i < (is_transposed ? p + 1 : rows); ++i) {
      const T left = is_transposed ? a[p * step + i] : a[i * step + p];
      for (int n = 0; n < columns; ++n) sums[i][n] += left * load(b + p * b_stride + n * Simd<T>::lanes);
    }
    add_corner<T, rows, columns, is_transposed, p + 1>(sums, a, step, b, b_stride);
  }
}

template <class T, int rows, int columns, bool is_transposed>
inline void product_block(const T* a, ptrdiff_t step, const T* b, ptrdiff_t b_stride, int first, int last, T* out,
                          ptrdiff_t out_stride, Old old, const T* from, ptrdiff_t from_stride, const T* factor,
                          int corner) {
  typedef typename Simd<T>::Vector Vector;
  constexpr int lanes = Simd<T>::lanes;
  Vector sums[rows][columns];
  for (int i = 0; i < rows; ++i)
    for (int n = 0; n < columns; ++n) {
      if (old == Old::kDrop) {
        sums[i][n] = Vector{};
      } else {
        sums[i][n] = load(from + i * from_stride + n * lanes);
        if (old == Old::kScale) sums[i][n] *= factor[i];
      }
    }
  if (corner >= 0)
    add_corner<T, rows, columns, is_transposed>(sums, is_transposed ? a + corner * step : a + corner, step,
                                                b + corner * b_stride, b_stride);
  for (int p = first; p < last; ++p) {
    Vector right[columns];
    for (int n = 0; n < columns; ++n) right[n] = load(b + p * b_stride + n * lanes);
    for (int i = 0; i < rows; ++i) {
      const T left = is_transposed ? a[p * step + i] : a[i * step + p];
      for (int n = 0; n < columns; ++n) sums[i][n] += left * right[n];
    }
  }
  for (int i = 0; i < rows; ++i)
    for (int n = 0; n < columns; ++n) store(out + i * out_stride + n * lanes, sums[i][n]);
}

// The block of as many rows as are wanted, at most `rows`.
template <class T, int rows, int columns, bool is_transposed, class... Rest>
inline void product_rows(int wanted, Rest... rest) {
  if constexpr (rows > 1)
    if (wanted < rows) return product_rows<T, rows - 1, columns, is_transposed>(wanted, rest...);
  product_block<T, rows, columns, is_transposed>(rest...);
}

// Options of a product.
template <class T>
struct Onto {
  Old old = Old::kDrop;
  const T* factor = nullptr;      // for kScale, one for each row
  const Tile<T>* from = nullptr;  // where the old value stands; null: in the destination
  Shape result = Shape::kFull;    // kLower: entries after the diagonal are left as they are, beyond the block of rows
  Shape left = Shape::kFull;      // kLower: a(i, p) counts for p <= i only; transposed, a^T(p, i) for p >= i
};

template <class T, bool is_transposed>
void product_of(const T* a, ptrdiff_t step, const Tile<T>& b, const Tile<T>& out, int m, int n, int p,
                const Onto<T>& onto) {
  constexpr int lanes = Simd<T>::lanes;
  const Tile<T> from = onto.from ? *onto.from : out;
  Prefetch& prefetch = Prefetch::of_thread();
  for (int column = 0; column < n; column += 2 * lanes) {
    for (int row = 0; row < m; row += kRows) {
      const int rows = std::min(kRows, m - row);
      prefetch.one();
      if (onto.result == Shape::kLower && column >= row + rows) continue;
      const bool is_lower = onto.left == Shape::kLower;
      const int first = is_lower && is_transposed ? row + rows : 0;
      const int last = is_lower && !is_transposed ? row : p;
      const T* block = is_transposed ? a + row : a + row * step;
      const T* factor = onto.factor ? onto.factor + row : nullptr;
      if (n - column > lanes)
        product_rows<T, kRows, 2, is_transposed>(rows, block, step, b.data + column, b.stride, first, last,
                                                 out.row(row) + column, out.stride, onto.old, from.row(row) + column,
                                                 from.stride, factor, is_lower ? row : -1);
      else
        product_rows<T, kRows, 1, is_transposed>(rows, block, step, b.data + column, b.stride, first, last,
                                                 out.row(row) + column, out.stride, onto.old, from.row(row) + column,
                                                 from.stride, factor, is_lower ? row : -1);
    }
  }
}

// out [m, n] = a [m, p] b [p, n] + (nothing, old, or factor_i old_i).
template <class T>
void product(const Left<T>& a, const Tile<T>& b, const Tile<T>& out, int m, int n, int p, const Onto<T>& onto = {}) {
  if (a.of_column == 1)
    product_of<T, false>(a.data, a.of_row, b, out, m, n, p, onto);
  else
    product_of<T, true>(a.data, a.of_column, b, out, m, n, p, onto);
}

// Four vectors of four: r[i][j] becomes r[j][i].
template <class Four>
inline void turn(Four* r) {
  const Four low = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5),
             high = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const Four next_low = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const Four next_high = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(low, next_low, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(low, next_low, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(high, next_high, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(high, next_high, 2, 3, 6, 7);
}

// out [columns, rows] = x [rows, columns]^T, in blocks of 8 rows and 4 columns.
template <class T>
void transpose(const Tile<T>& x, const Tile<T>& out, int rows, int columns) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  typedef T Loose __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
  typedef T Eight __attribute__((vector_size(8 * sizeof(T)), aligned(sizeof(T)), may_alias));
  const int whole_rows = rows / 8 * 8, whole_columns = columns / 4 * 4;
  for (int i = 0; i < whole_rows; i += 8)
    for (int j = 0; j < whole_columns; j += 4) {
      Four upper[4], lower[4];
      for (int a = 0; a < 4; ++a) {
        upper[a] = *reinterpret_cast<const Loose*>(x.row(i + a) + j);
        lower[a] = *reinterpret_cast<const Loose*>(x.row(i + 4 + a) + j);
      }
      turn(upper);
      turn(lower);
      for (int b = 0; b < 4; ++b)
        *reinterpret_cast<Eight*>(out.row(j + b) + i) =
            __builtin_shufflevector(upper[b], lower[b], 0, 1, 2, 3, 4, 5, 6, 7);
    }
  for (int i = 0; i < rows; ++i)
    for (int j = i < whole_rows ? whole_columns : 0; j < columns; ++j) out.row(j)[i] = x.row(i)[j];
}

}  // namespace attensor
