// Sums over keys with a coefficient for every offset, tile by tile; for one head
//   y_i = sum_j S_ij v_j     S_ij = (q_i . k_j) c_{j - i}     and, as one more column, sum_j S_ij
// Backward, with g = dL/dy, g' its last column and W_ij = g_i . v_j + g'_i:
//   dv = S^T g     dq = (W c) k     dk = (W c)^T q     dc_{j - i} = sum over all pairs at this offset of W (q . k)
// On a grid tokens are numbered row by row, and c has an entry for each pair of offsets; a sequence is one row.
// Source: arXiv:2106.12566, equations 8 to 12.

#include "memory.h"

namespace attensor {

struct KernelSum {
  Tensor q, k, v, out, grad_out, grad_q, grad_k, grad_v;  // of features and values; out and grad_out: one column more
  const void* coefficients;                               // [H, row offsets, column offsets]
  void* grad_coefficients;                                // [B, H, row offsets, column offsets], zeros
  int64_t batch, queries, keys;                           // tokens of all rows
  int64_t query_rows, query_width, key_width;             // of the grid
  int64_t offsets, shift;                     // entries of c for one head; causal: a query i sees keys up to i + shift
  int64_t query_tile, key_tile, first, last;  // tile I of queries meets the tiles I + first to I + last of keys
  int32_t heads, features, values, is_causal, threads;
};

constexpr int kBlock = 64;  // queries or keys of one product

// One head, a tile of queries at a time.
template <class T>
class HeadSum {
 public:
  HeadSum(const KernelSum& sum, int64_t number, bool is_backward)
      : sum_(sum),
        batch_(number / sum.heads),
        head_(number % sum.heads),
        coefficients_(static_cast<const T*>(sum.coefficients) + head_ * sum.offsets),
        grad_coefficients_(static_cast<T*>(sum.grad_coefficients) + number * sum.offsets) {
    Arena& arena = Arena::of_thread();
    const int rows = static_cast<int>(std::min(sum.query_tile, sum.queries));
    q_ = arena.tile<T>(rows, sum.features);
    y_ = arena.tile<T>(rows, sum.values + 1);
    totals_ = arena.take<T>(rows);
    k_ = arena.tile<T>(kBlock, sum.features);
    v_ = arena.tile<T>(kBlock, sum.values);
    keys_ = arena.tile<T>(sum.features, kBlock);
    scores_ = arena.tile<T>(kBlock, kBlock);
    if (!is_backward) return;
    values_ = arena.tile<T>(sum.values, kBlock);
    worth_ = arena.tile<T>(kBlock, kBlock);
    grad_q_ = arena.tile<T>(rows, sum.features);
    grad_k_ = arena.tile<T>(kBlock, sum.features);
    grad_v_ = arena.tile<T>(kBlock, sum.values);
  }

  void forward(int64_t tile) {
    const Range queries = tile_of(tile);
    read_rows(sum_.q, batch_, queries.first, head_, queries.size(), sum_.features, T(1), q_);
    clear(y_, queries.size(), sum_.values);
    std::fill(totals_, totals_ + queries.size(), T(0));
    for_blocks_of_keys(tile, [&](Range keys) {
      read_keys(keys);
      for_blocks(queries, keys, [&](Range rows, int at) {
        product(plain(below(q_, at)), keys_, scores_, rows.size(), keys.size(), sum_.features);
        for (int i = 0; i < rows.size(); ++i) totals_[at + i] += weigh(rows.first + i, keys, scores_.row(i));
        product(plain(scores_), v_, below(y_, at), rows.size(), sum_.values, keys.size(), {.old = Old::kKeep});
      });
    });
    for (int i = 0; i < queries.size(); ++i) y_.row(i)[sum_.values] = totals_[i];
    write_rows(y_, sum_.out, batch_, queries.first, head_, queries.size(), sum_.values + 1);
  }

  void backward(int64_t tile) {
    const Range queries = tile_of(tile);
    read_rows(sum_.q, batch_, queries.first, head_, queries.size(), sum_.features, T(1), q_);
    read_rows(sum_.grad_out, batch_, queries.first, head_, queries.size(), sum_.values + 1, T(1), y_);
    clear(grad_q_, queries.size(), sum_.features);
    for_blocks_of_keys(tile, [&](Range keys) {
      read_keys(keys);
      transpose(v_, values_, keys.size(), sum_.values);
      read_rows(sum_.grad_k, batch_, keys.first, head_, keys.size(), sum_.features, T(1), grad_k_);
      read_rows(sum_.grad_v, batch_, keys.first, head_, keys.size(), sum_.values, T(1), grad_v_);
      for_blocks(queries, keys, [&](Range rows, int at) { add_gradients(rows, keys, at); });
      write_rows(grad_k_, sum_.grad_k, batch_, keys.first, head_, keys.size(), sum_.features);
      write_rows(grad_v_, sum_.grad_v, batch_, keys.first, head_, keys.size(), sum_.values);
    });
    write_rows(grad_q_, sum_.grad_q, batch_, queries.first, head_, queries.size(), sum_.features);
  }

 private:
  struct Range {
    int64_t first, last;
    int size() const { return static_cast<int>(last - first); }
  };

  static Tile<T> below(const Tile<T>& x, int row) { return {x.row(row), x.stride}; }

  static void clear(const Tile<T>& x, int rows, int columns) {
    for (int i = 0; i < rows; ++i) std::fill(x.row(i), x.row(i) + columns, T(0));
  }

  Range tile_of(int64_t tile) const {
    return {tile * sum_.query_tile, std::min(sum_.queries, (tile + 1) * sum_.query_tile)};
  }

  template <class Body>
  void for_blocks_of_keys(int64_t tile, const Body& body) {
    const int64_t tiles = (sum_.keys + sum_.key_tile - 1) / sum_.key_tile;
    const int64_t first = std::clamp<int64_t>(tile + sum_.first, 0, tiles) * sum_.key_tile;
    int64_t last = std::min(sum_.keys, std::clamp<int64_t>(tile + sum_.last + 1, 0, tiles) * sum_.key_tile);
    if (sum_.is_causal) last = std::min(last, tile_of(tile).last + sum_.shift);
    for (int64_t at = first; at < last; at += kBlock) body(Range{at, std::min(last, at + kBlock)});
  }

  template <class Body>
  void for_blocks(const Range& queries, const Range& keys, const Body& body) {
    for (int64_t at = queries.first; at < queries.last; at += kBlock) {
      const Range rows{at, std::min(queries.last, at + kBlock)};
      if (!sum_.is_causal || keys.first < rows.last + sum_.shift) body(rows, static_cast<int>(at - queries.first));
    }
  }

  void read_keys(const Range& keys) {
    read_rows(sum_.k, batch_, keys.first, head_, keys.size(), sum_.features, T(1), k_);
    read_rows(sum_.v, batch_, keys.first, head_, keys.size(), sum_.values, T(1), v_);
    transpose(k_, keys_, keys.size(), sum_.features);
  }

  // Where the coefficients of query i stand for keys of one row: run(first column, columns, number of the first one).
  template <class Run>
  void for_rows_of_keys(int64_t i, const Range& keys, const Run& run) const {
    const int64_t row = i / sum_.query_width, column = i % sum_.query_width, width = sum_.key_width;
    const int64_t columns = sum_.query_width + width - 1;
    for (int64_t j = keys.first; j < keys.last;) {
      const int64_t key_row = j / width, end = std::min(keys.last, (key_row + 1) * width);
      const int64_t number =
          (key_row - row + sum_.query_rows - 1) * columns + j % width - column + sum_.query_width - 1;
      run(static_cast<int>(j - keys.first), static_cast<int>(end - j), number);
      j = end;
    }
  }

  // Scores of query i times their coefficients; returns their sum.
  T weigh(int64_t i, const Range& keys, T* scores) const {
    T total = T(0);
    for_rows_of_keys(i, keys, [&](int at, int count, int64_t number) {
      const T* c = coefficients_ + number;
      T* s = scores + at;
      typename Simd<T>::Vector sum{};
      int n = 0;
      for (; n + Simd<T>::lanes <= count; n += Simd<T>::lanes) {
        const auto weighed = load(s + n) * load(c + n);
        store(s + n, weighed);
        sum += weighed;
      }
      for (; n < count; ++n) total += s[n] *= c[n];
      for (int lane = 0; lane < Simd<T>::lanes; ++lane) total += sum[lane];
    });
    return total;
  }

  void add_gradients(const Range& rows, const Range& keys, int at) {
    const Tile<T> q = below(q_, at), grad = below(y_, at);
    const int m = rows.size(), n = keys.size(), features = sum_.features, values = sum_.values;
    product(plain(q), keys_, scores_, m, n, features);
    product(plain(grad), values_, worth_, m, n, values);
    for (int i = 0; i < m; ++i)
      for_rows_of_keys(rows.first + i, keys, [&](int first, int count, int64_t number) {
        const T* __restrict__ c = coefficients_ + number;
        T* __restrict__ grad_c = grad_coefficients_ + number;
        T* __restrict__ s = scores_.row(i) + first, * __restrict__ w = worth_.row(i) + first;
        const T of_total = grad.row(i)[values];
        for (int j = 0; j < count; ++j) {
          const T worth = w[j] + of_total;
          grad_c[j] += worth * s[j];
          s[j] *= c[j];
          w[j] = worth * c[j];
        }
      });
    product(transposed(scores_), grad, grad_v_, n, values, m, {.old = Old::kKeep});
    product(transposed(worth_), q, grad_k_, n, features, m, {.old = Old::kKeep});
    product(plain(worth_), k_, below(grad_q_, at), m, features, n, {.old = Old::kKeep});
  }

  const KernelSum& sum_;
  const int64_t batch_, head_;
  const T* coefficients_;
  T *grad_coefficients_, *totals_;
  Tile<T> q_, y_, k_, v_, keys_, scores_, values_, worth_, grad_q_, grad_k_, grad_v_;
};

template <class T>
bool run(const KernelSum& sum, bool is_backward) {
  const int64_t tiles = (sum.queries + sum.query_tile - 1) / sum.query_tile, heads = sum.batch * sum.heads;
  if (!is_backward)
    return run_tasks(heads * tiles, sum.threads,
                     [&](int64_t task) { HeadSum<T>(sum, task / tiles, false).forward(task % tiles); });
  // tiles of one head add to the same gradients of keys
  return run_tasks(heads, sum.threads, [&](int64_t task) {
    HeadSum<T> head(sum, task, true);
    for (int64_t tile = 0; tile < tiles; ++tile) head.backward(tile);
  });
}

}  // namespace attensor

ATTENSOR_LAYOUT(kernel_sum, attensor::KernelSum, q, k, v, out, grad_out, grad_q, grad_k, grad_v, coefficients,
                grad_coefficients, batch, queries, keys, query_rows, query_width, key_width, offsets, shift, query_tile,
                key_tile, first, last, heads, features, values, is_causal, threads)

// 1 when all went well; 0: out of memory.
ATTENSOR_EXPORT int ATTENSOR_NAME(kernel_sum)(const attensor::KernelSum* sum, int is_backward) {
  return attensor::run<ATTENSOR_REAL>(*sum, is_backward);
}
