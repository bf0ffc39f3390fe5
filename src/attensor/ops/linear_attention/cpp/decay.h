// How a chunk decays: one decay for all key channels (here: a mask on the scores) or one for each (halving.h).
//
// Both answer, with G the running sum of the log decays inside a chunk of m tokens:
//   scores  A_ij = sum_c q_ic k_jc exp(G_ic - G_jc) for j <= i, else 0      reading  q_i exp(G_i)
//   total   exp(G_last)                                                    writing  k_j exp(G_last - G_j)
// and turn the gradients of scores, reading and writing into those of q and k. Decays are multiplied up and never
// divided: nothing overflows, and a decay of zero is like any other.
#pragma once

#include "memory.h"

namespace attensor {

template <class T>
struct Answers {
  Tile<T> scores, reading, writing;
  const T* total;  // one for each key channel; null: 1
};

template <class T>
struct Gradients {
  Tile<T> scores;      // of A, up to the diagonal; overwritten
  Tile<T> q, k;        // of reading and writing; overwritten
  Tile<T> to_q, to_k;  // results: those of q and k
};

// x_c *= y_c for the first n entries of padded rows, in whole vectors.
template <class T>
inline void multiply(T* x, const T* y, int n) {
  for (int c = 0; c < n; c += Simd<T>::lanes) store(x + c, load(x + c) * load(y + c));
}

// None, one decay for the head, or one for each token.
template <class T>
class MaskedDecay {
 public:
  static constexpr bool kIsSingle = true;  // and `backward` reaches `to_q` and `to_k` without a copy

  MaskedDecay(Arena& arena, int chunk, int channels)
      : channels_(channels),
        mask_(arena.tile<T>(chunk, chunk)),
        keys_(arena.tile<T>(channels, chunk)),
        answers_{arena.tile<T>(chunk, chunk), arena.tile<T>(chunk, channels), arena.tile<T>(chunk, channels), nullptr},
        since_start_(arena.take<T>(chunk)),
        until_end_(arena.take<T>(chunk)),
        pairs_(arena.take<T>(chunk)),
        total_(arena.take<T>(channels)) {}

  // One decay for all tokens.
  void set_constant(T log_decay, int chunk) {
    has_decay_ = true;
    tokens_ = -1;
    for (int i = 0; i < chunk; ++i) since_start_[i] = std::exp((i + 1) * log_decay);
    for (int i = 0; i < chunk; ++i) {
      mask_.row(i)[i] = T(1);
      for (int j = 0; j < i; ++j) mask_.row(i)[j] = since_start_[i - j - 1];
    }
  }

  // A chunk of m tokens; log_decay: one for each of them, as a tile of one column, or null.
  void start(int m, const Tile<T>* log_decay) {
    if (log_decay) set_tokens(m, *log_decay);
    if (!has_decay_ || (m == tokens_ && !log_decay)) return;
    tokens_ = m;
    std::copy(mask_.row(m - 1), mask_.row(m - 1) + m, until_end_);
    std::fill(total_, total_ + channels_, since_start_[m - 1]);
  }

  // What is left of keys at the end of the chunk; `scores` and `reading` are not computed.
  Answers<T> writing(const Tile<T>& k, int m) {
    if (!has_decay_) return {{}, {}, k, nullptr};
    for (int i = 0; i < m; ++i)
      for (int c = 0; c < channels_; ++c) answers_.writing.row(i)[c] = until_end_[i] * k.row(i)[c];
    return {{}, {}, answers_.writing, total_};
  }

  Answers<T> forward(const Tile<T>& q, const Tile<T>& k, int m) {
    transpose(k, keys_, m, channels_);
    product(plain(q), keys_, answers_.scores, m, m, channels_, {.result = Shape::kLower});
    weigh(answers_.scores, m);
    Answers<T> answers = writing(k, m);
    answers.scores = answers_.scores;
    answers.reading = has_decay_ ? answers_.reading : q;
    if (has_decay_)
      for (int i = 0; i < m; ++i)
        for (int c = 0; c < channels_; ++c) answers.reading.row(i)[c] = since_start_[i] * q.row(i)[c];
    return answers;
  }

  // Gradients of the log decays, before `backward`. The decay of token t acts on what came before the chunk (`kept`:
  // its part of the gradient), on keys before t at the end, on what queries from t on read, and on pairs with t between
  // them: sums of decayed terms alone, in which nothing large cancels.
  void decay_gradients(const Answers<T>& answers, const Gradients<T>& grad, int m, T kept, T* out) const {
    std::fill(pairs_, pairs_ + m, T(0));
    for (int i = 0; i < m; ++i) {
      T written = T(0);
      for (int j = 0; j < i; ++j) {
        const T pair = answers.scores.row(i)[j] * grad.scores.row(i)[j];
        pairs_[j] -= pair;
        written += pair;
      }
      pairs_[i] += written;
      out[i] = kept;
      kept += dot(answers.writing.row(i), grad.k.row(i), channels_);
    }
    T after = T(0);
    for (int i = m - 1; i >= 0; --i) {
      after += pairs_[i] + dot(answers.reading.row(i), grad.q.row(i), channels_);
      out[i] += after;
    }
  }

  void backward(const Tile<T>& q, const Tile<T>& k, const Gradients<T>& grad, int m) {
    weigh(grad.scores, m);
    const Old old = has_decay_ ? Old::kScale : Old::kKeep;
    product(plain(grad.scores), k, grad.to_q, m, channels_, m,
            {.old = old, .factor = since_start_, .from = &grad.q, .left = Shape::kLower});
    product(transposed(grad.scores), q, grad.to_k, m, channels_, m,
            {.old = old, .factor = until_end_, .from = &grad.k, .left = Shape::kLower});
  }

 private:
  void set_tokens(int m, const Tile<T>& log_decay) {
    has_decay_ = true;
    for (int i = 0; i < m; ++i) {
      const T decay = std::exp(log_decay.row(i)[0]);
      for (int j = 0; j < i; ++j) mask_.row(i)[j] = mask_.row(i - 1)[j] * decay;
      mask_.row(i)[i] = T(1);
      since_start_[i] = i ? since_start_[i - 1] * decay : decay;
    }
  }

  // Times the decays.
  void weigh(const Tile<T>& scores, int m) const {
    for (int i = 0; i < m && has_decay_; ++i) multiply(scores.row(i), mask_.row(i), i);
  }

  int channels_, tokens_ = -1;
  bool has_decay_ = false;
  Tile<T> mask_, keys_;
  Answers<T> answers_;
  T *since_start_, *until_end_, *pairs_, *total_;
};

}  // namespace attensor
