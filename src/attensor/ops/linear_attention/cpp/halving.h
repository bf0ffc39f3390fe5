// One decay for each token and key channel: decayed scores without dividing by a decay, almost all in products.
//
// Pairs of tokens in a block of kBase are taken one by one. Then two blocks at a time become one: for a row i of the
// right half and a column j of the left one, exp(G_i - G_j) is [decay from the middle to i] [decay from j to the
// middle], so that this quarter of the scores is one product of queries and keys that have decayed so far.
#pragma once

#include "decay.h"
#include "exponential.h"

namespace attensor {

template <class T>
class ChannelDecay {
 public:
  static constexpr bool kIsSingle = false;
  static constexpr int kBase = 16;
  static_assert(kBase % Simd<T>::lanes == 0, "a quarter of the scores is written in whole vectors");

  ChannelDecay(Arena& arena, int chunk, int channels)
      : channels_(channels),
        decay_(arena.tile<T>(chunk, channels)),
        columns_(arena.tile<T>(channels, chunk)),
        totals_(arena.tile<T>(blocks(chunk), channels)),
        answers_{arena.tile<T>(chunk, chunk), arena.tile<T>(chunk, channels), arena.tile<T>(chunk, channels),
                 totals_.data} {
    for (int half = kBase; half < chunk; half *= 2)
      levels_.push_back({half, arena.tile<T>(chunk, channels), arena.tile<T>(blocks(chunk), channels)});
  }

  void start(int m, const Tile<T>* log_decay) {
    for (int i = 0; i < m; ++i) exponentials(log_decay->row(i), decay_.row(i), channels_);
  }

  void set_constant(T, int) {}

  // What is left of keys at the end of the chunk; `scores` and `reading` are not computed.
  Answers<T> writing(const Tile<T>& k, int m) {
    T* total = totals_.row(0);
    std::fill(total, total + channels_, T(1));
    for (int j = m - 1; j >= 0; --j) {
      for (int c = 0; c < channels_; ++c) answers_.writing.row(j)[c] = total[c] * k.row(j)[c];
      multiply(total, decay_.row(j), channels_);
    }
    return answers_;
  }

  Answers<T> forward(const Tile<T>& q, const Tile<T>& k, int m) {
    for (int first = 0; first < m; first += kBase) base_forward(q, k, first, std::min(first + kBase, m));
    for (const Level& level : levels_)
      for (int left = 0; left + level.half < m; left += 2 * level.half) merge(level, left, m);
    return answers_;
  }

  // `grad.to_q` and `to_k` are not used: results are in `grad.q` and `k`.
  void backward(const Tile<T>& q, const Tile<T>& k, const Gradients<T>& grad, int m) {
    for (auto level = levels_.rbegin(); level != levels_.rend(); ++level)
      for (int left = 0; left + level->half < m; left += 2 * level->half) split(*level, left, m, grad);
    for (int first = 0; first < m; first += kBase) base_backward(q, k, grad, first, std::min(first + kBase, m));
  }

 private:
  typedef typename Simd<T>::Vector Vector;
  static constexpr int lanes = Simd<T>::lanes;

  struct Level {
    int half;
    Tile<T> kept;    // decayed queries of right halves and decayed keys of left ones, each at its token
    Tile<T> totals;  // decay of each block, at the first of its kBase
  };

  static int blocks(int tokens) { return round_up(tokens, kBase) / kBase; }

  static Tile<T> from_row(const Tile<T>& x, int row, int column = 0) { return {x.row(row) + column, x.stride}; }

  // The pairs of one block, a vector of channels at a time; and what reaches across its borders.
  void base_forward(const Tile<T>& q, const Tile<T>& k, int first, int last) {
    for (int i = first; i < last; ++i) std::fill(answers_.scores.row(i) + first, answers_.scores.row(i) + last, T(0));
    for (int c = 0; c < channels_; c += 4 * lanes) {
      switch (std::min(4, (channels_ - c + lanes - 1) / lanes)) {
        case 1: pairs_forward<1>(q, k, first, last, c); break;
        case 2: pairs_forward<2>(q, k, first, last, c); break;
        case 3: pairs_forward<3>(q, k, first, last, c); break;
        default: pairs_forward<4>(q, k, first, last, c);
      }
    }
  }

  template <int width>
  void pairs_forward(const Tile<T>& q, const Tile<T>& k, int first, int last, int c) {
    Vector since[width], until[width];
    for (int n = 0; n < width; ++n) since[n] = until[n] = Vector{} + T(1);
    for (int i = first; i < last; ++i)
      for (int n = 0; n < width; ++n) {
        since[n] *= load(decay_.row(i) + c + n * lanes);
        store(answers_.reading.row(i) + c + n * lanes, since[n] * load(q.row(i) + c + n * lanes));
      }
    for (int n = 0; n < width; ++n) store(totals_.row(first / kBase) + c + n * lanes, since[n]);
    for (int j = last - 1; j >= first; --j) {
      Vector key[width];
      for (int n = 0; n < width; ++n) {
        key[n] = load(k.row(j) + c + n * lanes);
        store(answers_.writing.row(j) + c + n * lanes, until[n] * key[n]);
        until[n] *= load(decay_.row(j) + c + n * lanes);
      }
      for (int i = j; i < last; ++i) {
        Vector sum{};
        for (int n = 0; n < width; ++n) {
          if (i > j) key[n] *= load(decay_.row(i) + c + n * lanes);
          sum += key[n] * load(q.row(i) + c + n * lanes);
        }
        T score = T(0);
        for (int lane = 0; lane < lanes; ++lane) score += sum[lane];
        answers_.scores.row(i)[j] += score;
      }
    }
  }

  void base_backward(const Tile<T>& q, const Tile<T>& k, const Gradients<T>& grad, int first, int last) {
    for (int c = 0; c < channels_; c += 4 * lanes) {
      switch (std::min(4, (channels_ - c + lanes - 1) / lanes)) {
        case 1: pairs_backward<1>(q, k, grad, first, last, c); break;
        case 2: pairs_backward<2>(q, k, grad, first, last, c); break;
        case 3: pairs_backward<3>(q, k, grad, first, last, c); break;
        default: pairs_backward<4>(q, k, grad, first, last, c);
      }
    }
  }

  template <int width>
  void pairs_backward(const Tile<T>& q, const Tile<T>& k, const Gradients<T>& grad, int first, int last, int c) {
    Vector since[width], until[width];
    for (int n = 0; n < width; ++n) since[n] = until[n] = Vector{} + T(1);
    for (int i = first; i < last; ++i)
      for (int n = 0; n < width; ++n) {
        T* of_query = grad.q.row(i) + c + n * lanes;
        since[n] *= load(decay_.row(i) + c + n * lanes);
        store(of_query, since[n] * load(of_query));
      }
    for (int j = last - 1; j >= first; --j) {
      Vector key[width], decayed[width], sum[width];
      for (int n = 0; n < width; ++n) {
        key[n] = load(k.row(j) + c + n * lanes);
        decayed[n] = Vector{} + T(1);
        sum[n] = until[n] * load(grad.k.row(j) + c + n * lanes);
        until[n] *= load(decay_.row(j) + c + n * lanes);
      }
      for (int i = j; i < last; ++i) {
        const T of_score = grad.scores.row(i)[j];
        for (int n = 0; n < width; ++n) {
          T* of_query = grad.q.row(i) + c + n * lanes;
          if (i > j) decayed[n] *= load(decay_.row(i) + c + n * lanes);
          const Vector weight = of_score * decayed[n];
          store(of_query, load(of_query) + weight * key[n]);
          sum[n] += weight * load(q.row(i) + c + n * lanes);
        }
      }
      for (int n = 0; n < width; ++n) store(grad.k.row(j) + c + n * lanes, sum[n]);
    }
  }

  // Two halves become one block of 2 half tokens.
  void merge(const Level& level, int left, int m) {
    const int half = level.half, right = left + half, rows = std::min(half, m - right);
    for (int j = left; j < right; ++j) std::memcpy(level.kept.row(j), answers_.writing.row(j), bytes());
    for (int i = right; i < right + rows; ++i) std::memcpy(level.kept.row(i), answers_.reading.row(i), bytes());
    const Tile<T> queries = from_row(level.kept, right), keys = from_row(level.kept, left);
    transpose(keys, columns_, half, channels_);
    product(plain(queries), columns_, from_row(answers_.scores, right, left), rows, half, channels_);
    T *of_left = totals_.row(left / kBase), *of_right = totals_.row(right / kBase);
    std::memcpy(level.totals.row(left / kBase), of_left, bytes());
    std::memcpy(level.totals.row(right / kBase), of_right, bytes());
    for (int i = right; i < right + rows; ++i) multiply(answers_.reading.row(i), of_left, channels_);
    for (int j = left; j < right; ++j) multiply(answers_.writing.row(j), of_right, channels_);
    multiply(of_left, of_right, channels_);
  }

  // The gradients of one block's reading and writing, and of the quarter of the scores, to those of its halves.
  void split(const Level& level, int left, int m, const Gradients<T>& grad) {
    const int half = level.half, right = left + half, rows = std::min(half, m - right);
    const T *of_left = level.totals.row(left / kBase), *of_right = level.totals.row(right / kBase);
    for (int i = right; i < right + rows; ++i) multiply(grad.q.row(i), of_left, channels_);
    for (int j = left; j < right; ++j) multiply(grad.k.row(j), of_right, channels_);
    const Tile<T> quarter = from_row(grad.scores, right, left);
    product(plain(quarter), from_row(level.kept, left), from_row(grad.q, right), rows, channels_, half,
            {.old = Old::kKeep});
    product(transposed(quarter), from_row(level.kept, right), from_row(grad.k, left), half, channels_, rows,
            {.old = Old::kKeep});
  }

  size_t bytes() const { return sizeof(T) * round_up(channels_, lanes); }

  int channels_;
  Tile<T> decay_, columns_, totals_;
  Answers<T> answers_;
  std::vector<Level> levels_;
};

}  // namespace attensor
