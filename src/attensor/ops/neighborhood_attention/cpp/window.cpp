// Neighbourhood attention, a query at a time over the keys of its window, whose rows are packed into the cache.
//   s_j = scale q . k_j + b_j      p = softmax(s)      o = sum_j p_j v_j
// Backward, with g = dL/do, h = dL/dlse and the weights computed again:
//   d_j = p_j (g . v_j - sum_l p_l g . v_l + h)
//   dq = scale sum_j d_j k_j      dk_j += scale d_j q      dv_j += p_j g      db_j += d_j
// Source: arXiv:2204.07143, equations 2 to 4.

#include <utility>

#include "exponential.h"
#include "memory.h"

namespace attensor {

constexpr int kAxes = 3;
constexpr int64_t kBandBytes = int64_t{1} << 18;  // of keys and values, as much as stays in a core's second cache

// Mirrored by window.py. A place x of an axis sees `count` keys of it, the first at `first`, then every `step`-th one,
// and finds the first one's bias at `entry`.
struct Window {
  Tensor q, k, v, out, grad_out, grad_q, grad_k, grad_v;  // [B, cells, H or Hkv, D]; gradients of k, v: zeros
  const void *bias, *grad_lse;                            // [H, entries of all axes], [B, cells, H]; or none
  void *lse, *grad_bias;                                  // [B, cells, H], [B, H, entries of all axes] zeros
  const int64_t* seen;                                    // first, count and entry of all places, axis by axis
  int64_t length[kAxes], step[kAxes], entries[kAxes];
  int64_t batch, most;  // most: keys of a window
  int32_t heads, key_heads, key_dim, value_dim, threads;
  double scale;
};

// Of every block of m lanes of a, and then of b, the sum of its halves.
template <int m, class Vector, size_t... lane>
inline Vector halves(Vector a, Vector b, std::index_sequence<lane...>) {
  constexpr int lanes = sizeof...(lane), half = m / 2;
  constexpr auto from = [](int x) { return x % m < half ? x : lanes + x - half; };
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, from(lane)...) + __builtin_shufflevector(a, b, (from(lane) + half)...);
#else
  typedef decltype(a < b) Places;
  return __builtin_shuffle(a, b, Places{from(lane)...}) + __builtin_shuffle(a, b, Places{(from(lane) + half)...});
#endif
}

// One vector of the totals of as many vectors as it has lanes.
template <class T, int count>
inline __attribute__((always_inline)) typename Simd<T>::Vector totals(const typename Simd<T>::Vector (&sums)[count]) {
  if constexpr (count == 1) {
    return sums[0];
  } else {
    typename Simd<T>::Vector half[count / 2];
#pragma GCC unroll 16
    for (int i = 0; i < count / 2; ++i)
      half[i] = halves<count>(sums[i], sums[i + count / 2], std::make_index_sequence<Simd<T>::lanes>());
    return totals<T>(half);
  }
}

// out_n = x . row_n for whole vectors of rows, which begin at `rows + at[n]`.
template <class T>
inline void dots(const T* x, const T* rows, const ptrdiff_t* at, int count, int width, T* out) {
  constexpr int lanes = Simd<T>::lanes;
  for (int n = 0; n < count; n += lanes) {
    typename Simd<T>::Vector sums[lanes] = {};
    const T* row[lanes];
    for (int i = 0; i < lanes; ++i) row[i] = rows + at[n + i];
    for (int c = 0; c < width; c += lanes) {
      const auto factor = load(x + c);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) sums[i] += factor * load(row[i] + c);
    }
    store(out + n, totals<T>(sums));
  }
}

template <class T, int vectors>
inline void weighted_block(const T* weights, const T* rows, const ptrdiff_t* at, int count, T* out) {
  typename Simd<T>::Vector sums[vectors] = {};
  for (int n = 0; n < count; ++n) {
    const T* row = rows + at[n];
#pragma GCC unroll 4
    for (int i = 0; i < vectors; ++i) sums[i] += weights[n] * load(row + i * Simd<T>::lanes);
  }
  for (int i = 0; i < vectors; ++i) store(out + i * Simd<T>::lanes, sums[i]);
}

// out = sum over n of weights_n row_n
template <class T>
inline void weighted(const T* weights, const T* rows, const ptrdiff_t* at, int count, int width, T* out) {
  constexpr int lanes = Simd<T>::lanes;
  int c = 0;
  for (; c + 4 * lanes <= width; c += 4 * lanes) weighted_block<T, 4>(weights, rows + c, at, count, out + c);
  for (; c + 2 * lanes <= width; c += 2 * lanes) weighted_block<T, 2>(weights, rows + c, at, count, out + c);
  for (; c < width; c += lanes) weighted_block<T, 1>(weights, rows + c, at, count, out + c);
}

template <class T, int vectors>
inline void scatter_block(const T* weights, const T* x, T* rows, const ptrdiff_t* at, int count) {
  typename Simd<T>::Vector values[vectors];
  for (int i = 0; i < vectors; ++i) values[i] = load(x + i * Simd<T>::lanes);
  for (int n = 0; n < count; ++n) {
    T* row = rows + at[n];
#pragma GCC unroll 4
    for (int i = 0; i < vectors; ++i) {
      T* part = row + i * Simd<T>::lanes;
      store(part, load(part) + weights[n] * values[i]);
    }
  }
}

// row_n += weights_n x
template <class T>
inline void scatter(const T* weights, const T* x, T* rows, const ptrdiff_t* at, int count, int width) {
  constexpr int lanes = Simd<T>::lanes;
  int c = 0;
  for (; c + 4 * lanes <= width; c += 4 * lanes) scatter_block<T, 4>(weights, x + c, rows + c, at, count);
  for (; c < width; c += lanes) scatter_block<T, 1>(weights, x + c, rows + c, at, count);
}

// One head of keys and the heads of queries that share it, some planes of the first axis at a time.
template <class T>
class WindowHead {
 public:
  WindowHead(const Window& window, int64_t number, bool is_backward)
      : w_(window),
        batch_(number / window.key_heads),
        key_head_(number % window.key_heads),
        plane_(window.length[1] * window.length[2]),
        key_width_(round_up(window.key_dim, lanes)),
        value_width_(round_up(window.value_dim, lanes)),
        is_backward_(is_backward) {
    entries_ = w_.entries[0] * w_.entries[1] * w_.entries[2];
    const int64_t* seen = w_.seen;
    for (int axis = 0; axis < kAxes; seen += 3 * w_.length[axis++]) seen_[axis] = seen;
  }

  static int64_t planes_at_once(const Window& w) {
    const int64_t bytes = w.length[1] * w.length[2] * (w.key_dim + w.value_dim) * sizeof(T);
    return std::min(w.length[0], std::max(kBandBytes / std::max<int64_t>(bytes, 1), w.entries[0] * w.step[0]));
  }

  void run(int64_t first, int64_t last) {
    const auto [low, high] = planes_seen(first, last);
    low_ = low;
    const int64_t from = low * plane_;
    const int cells = static_cast<int>((high - low) * plane_);
    take_memory(cells);
    read_rows(w_.k, batch_, from, key_head_, cells, w_.key_dim, T(1), k_);
    read_rows(w_.v, batch_, from, key_head_, cells, w_.value_dim, T(1), v_);
    if (is_backward_) {
      read_rows(w_.grad_k, batch_, from, key_head_, cells, w_.key_dim, T(1), grad_k_);
      read_rows(w_.grad_v, batch_, from, key_head_, cells, w_.value_dim, T(1), grad_v_);
    }
    for (int64_t a = first; a < last; ++a)
      for (int64_t b = 0; b < w_.length[1]; ++b)
        for (int64_t c = 0; c < w_.length[2]; ++c) attend({a, b, c});
    if (is_backward_) {
      write_rows(grad_k_, w_.grad_k, batch_, from, key_head_, cells, w_.key_dim);
      write_rows(grad_v_, w_.grad_v, batch_, from, key_head_, cells, w_.value_dim);
    }
  }

 private:
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();
  struct Cell {
    int64_t place[kAxes];
  };

  int64_t first_of(int axis, int64_t place) const { return seen_[axis][place]; }
  int64_t count_of(int axis, int64_t place) const { return seen_[axis][w_.length[axis] + place]; }
  int64_t entry_of(int axis, int64_t place) const { return seen_[axis][2 * w_.length[axis] + place]; }

  std::pair<int64_t, int64_t> planes_seen(int64_t first, int64_t last) const {
    int64_t low = w_.length[0], high = 0;
    for (int64_t a = first; a < last; ++a) {
      if (!count_of(0, a)) continue;
      low = std::min(low, first_of(0, a));
      high = std::max(high, first_of(0, a) + (count_of(0, a) - 1) * w_.step[0] + 1);
    }
    return {std::min(low, high), high};
  }

  void take_memory(int cells) {
    Arena& arena = Arena::of_thread();
    const int most = round_up(static_cast<int>(w_.most), lanes);
    k_ = arena.tile<T>(cells, key_width_ + value_width_);
    v_ = {k_.data + key_width_, k_.stride};
    q_ = arena.tile<T>(1, w_.key_dim);
    out_ = arena.tile<T>(1, w_.value_dim);
    weights_ = arena.take<T>(most);
    keys_ = arena.take<ptrdiff_t>(most);
    kept_keys_ = arena.take<ptrdiff_t>(most);
    places_ = arena.take<int64_t>(most);
    kept_places_ = arena.take<int64_t>(most);
    if (!is_backward_) return;
    grad_k_ = arena.tile<T>(cells, key_width_ + value_width_);
    grad_v_ = {grad_k_.data + key_width_, grad_k_.stride};
    grad_q_ = arena.tile<T>(1, w_.key_dim);
    worth_ = arena.take<T>(most);
  }

  void attend(const Cell& cell) {
    const int64_t at = cell.place[0] * plane_ + cell.place[1] * w_.length[2] + cell.place[2];
    list_keys(cell);
    const int64_t shared = w_.heads / w_.key_heads;
    for (int64_t head = key_head_ * shared; head < (key_head_ + 1) * shared; ++head) {
      read_rows(w_.q, batch_, at, head, 1, w_.key_dim, T(w_.scale), q_);
      const Keys seen = weigh(head);
      if (is_backward_)
        backward(at, head, seen);
      else
        forward(at, head, seen);
    }
  }

  // Where those of a query begin, without those of bias -inf: what they hold, finite or not, adds nothing.
  struct Keys {
    const ptrdiff_t* keys;
    const int64_t* places;
    int count;
    T top = -kInfinity, total = T(0);
  };

  void list_keys(const Cell& cell) {
    const auto [a, b, c] = cell.place;
    int count = 0;
    for (int64_t i = 0; i < count_of(0, a); ++i)
      for (int64_t j = 0; j < count_of(1, b); ++j) {
        const int64_t row = (first_of(0, a) + i * w_.step[0] - low_) * w_.length[1] + first_of(1, b) + j * w_.step[1];
        const int64_t key = row * w_.length[2] + first_of(2, c);
        const int64_t entry = ((entry_of(0, a) + i) * w_.entries[1] + entry_of(1, b) + j) * w_.entries[2];
        const int width = static_cast<int>(count_of(2, c));
        for (int n = 0; n < width; ++n) keys_[count + n] = (key + n * w_.step[2]) * k_.stride;
        if (w_.bias)
          for (int n = 0; n < width; ++n) places_[count + n] = entry + entry_of(2, c) + n;
        count += width;
      }
    count_ = count;
    // whole vectors are read: what comes behind is any row
    for (; count % lanes; ++count) keys_[count] = keys_[0];
  }

  // Weights before they are divided by their total.
  Keys weigh(int64_t head) {
    dots(q_.data, k_.data, keys_, count_, key_width_, weights_);
    Keys seen = w_.bias ? add_bias(static_cast<const T*>(w_.bias) + head * entries_) : Keys{keys_, places_, count_};
    const int whole = round_up(seen.count, lanes);
    for (int n = seen.count; n < whole; ++n) weights_[n] = -kInfinity;
    seen.top = largest(whole);
    if (std::isinf(seen.top))
      for (int n = 0; n < seen.count; ++n)
        if (std::isnan(weights_[n])) seen.top = weights_[n];
    typename Simd<T>::Vector sums{};
    for (int n = 0; n < whole; n += lanes) store(weights_ + n, load(weights_ + n) - seen.top);
    exponentials(weights_, weights_, whole);
    // behind the last key is no weight, also where -inf - -inf has made it NaN
    for (int n = seen.count; n < whole; ++n) weights_[n] = T(0);
    for (int n = 0; n < whole; n += lanes) sums += load(weights_ + n);
    for (int i = 0; i < lanes; ++i) seen.total += sums[i];
    return seen;
  }

  Keys add_bias(const T* bias) {
    bool is_open = true;
    for (int n = 0; n < count_; ++n) {
      const T added = bias[places_[n]];
      weights_[n] += added;
      is_open &= added != -kInfinity;
    }
    if (is_open) return {keys_, places_, count_};
    int kept = 0;
    for (int n = 0; n < count_; ++n) {
      if (bias[places_[n]] == -kInfinity) continue;
      kept_keys_[kept] = keys_[n];
      kept_places_[kept] = places_[n];
      weights_[kept++] = weights_[n];
    }
    for (int n = kept; n % lanes; ++n) kept_keys_[n] = keys_[0];
    return {kept_keys_, kept_places_, kept};
  }

  // NaN does not count.
  T largest(int whole) const {
    typename Simd<T>::Vector most = typename Simd<T>::Vector{} - kInfinity;
    for (int n = 0; n < whole; n += lanes) {
      const auto some = load(weights_ + n);
      most = some > most ? some : most;
    }
    T top = most[0];
    for (int i = 1; i < lanes; ++i) top = std::max(top, most[i]);
    return top;
  }

  void forward(int64_t at, int64_t head, const Keys& seen) {
    weighted(weights_, v_.data, seen.keys, seen.count, value_width_, out_.data);
    const T factor = seen.count ? T(1) / seen.total : T(0);
    for (int c = 0; c < value_width_; ++c) out_.data[c] *= factor;
    write_rows(out_, w_.out, batch_, at, head, 1, w_.value_dim);
    const T sum = std::isinf(seen.top) ? T(0) : std::log(seen.total);
    static_cast<T*>(w_.lse)[number(at, head)] = seen.top + sum;
  }

  void backward(int64_t at, int64_t head, const Keys& seen) {
    read_rows(w_.grad_out, batch_, at, head, 1, w_.value_dim, T(1), out_);
    dots(out_.data, v_.data, seen.keys, seen.count, value_width_, worth_);
    const T factor = seen.count ? T(1) / seen.total : T(0);
    for (int n = seen.count; n % lanes; ++n) worth_[n] = T(0);
    typename Simd<T>::Vector means{};
    for (int n = 0; n < seen.count; n += lanes) {
      const auto weight = load(weights_ + n) * factor;
      store(weights_ + n, weight);
      means += weight * load(worth_ + n);
    }
    T mean = T(0);
    for (int i = 0; i < lanes; ++i) mean += means[i];
    const T of_lse = w_.grad_lse ? static_cast<const T*>(w_.grad_lse)[number(at, head)] : T(0);
    scatter(weights_, out_.data, grad_v_.data, seen.keys, seen.count, value_width_);
    for (int n = 0; n < seen.count; ++n) worth_[n] = weights_[n] * (worth_[n] - mean + of_lse);
    scatter(worth_, q_.data, grad_k_.data, seen.keys, seen.count, key_width_);
    if (w_.grad_bias) {
      T* grad = static_cast<T*>(w_.grad_bias) + (batch_ * w_.heads + head) * entries_;
      for (int n = 0; n < seen.count; ++n) grad[seen.places[n]] += worth_[n];
    }
    weighted(worth_, k_.data, seen.keys, seen.count, key_width_, grad_q_.data);
    for (int c = 0; c < key_width_; ++c) grad_q_.data[c] *= T(w_.scale);
    write_rows(grad_q_, w_.grad_q, batch_, at, head, 1, w_.key_dim);
  }

  int64_t number(int64_t at, int64_t head) const { return (batch_ * w_.length[0] * plane_ + at) * w_.heads + head; }

  const Window& w_;
  const int64_t batch_, key_head_, plane_;
  const int key_width_, value_width_;
  const bool is_backward_;
  const int64_t* seen_[kAxes];
  int64_t entries_, low_ = 0;
  int count_ = 0;
  Tile<T> k_, v_, q_, out_, grad_k_, grad_v_, grad_q_;
  T *weights_, *worth_;
  ptrdiff_t *keys_, *kept_keys_;
  int64_t *places_, *kept_places_;
};

template <class T>
bool run(const Window& window, bool is_backward) {
  const int64_t planes = window.length[0], some = WindowHead<T>::planes_at_once(window);
  const int64_t heads = window.batch * window.key_heads, bands = (planes + some - 1) / some;
  const auto band = [&](WindowHead<T>&& head, int64_t number) {
    head.run(number * some, std::min(planes, (number + 1) * some));
  };
  if (!is_backward)
    return run_tasks(heads * bands, window.threads,
                     [&](int64_t task) { band(WindowHead<T>(window, task / bands, false), task % bands); });
  // bands of one head add to the same gradients of keys
  return run_tasks(heads, window.threads, [&](int64_t task) {
    for (int64_t number = 0; number < bands; ++number) band(WindowHead<T>(window, task, true), number);
  });
}

}  // namespace attensor

ATTENSOR_LAYOUT(neighborhood_window, attensor::Window, q, k, v, out, grad_out, grad_q, grad_k, grad_v, bias, grad_lse,
                lse, grad_bias, seen, length, step, entries, batch, most, heads, key_heads, key_dim, value_dim, threads,
                scale)

// 1 when all went well; 0: out of memory.
ATTENSOR_EXPORT int ATTENSOR_NAME(neighborhood_window)(const attensor::Window* window, int is_backward) {
  return attensor::run<ATTENSOR_REAL>(*window, is_backward);
}
