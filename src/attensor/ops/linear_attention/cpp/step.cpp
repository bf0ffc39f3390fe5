// One token of linear attention, in one pass over the states:
//   S <- exp(g) S + k v^T      o = scale S^T q
#include "memory.h"

namespace attensor {

// Mirrored by step.py. Tensors are [B, 1, H, D], states contiguous [B, H, K, V].
struct Step {
  Tensor q, k, v, log_decay, out;
  const void* old_state;
  void* state;
  int64_t batch;
  int32_t heads, key_heads, key_dim, value_dim, decays, threads;  // decays of a head: none, one or K
  double scale;
};

// One row of a state: new = decay old + key v, and out += query new.
template <class T>
inline void advance_row(const T* __restrict__ old, T* __restrict__ state, const T* __restrict__ v, T* __restrict__ out,
                        T decay, T key, T query, int values) {
  for (int c = 0; c < values; ++c) {
    const T now = decay * old[c] + key * v[c];
    state[c] = now;
    out[c] += query * now;
  }
}

template <class T>
void advance(const Step& step, int64_t number) {
  const int64_t batch = number / step.heads, head = number % step.heads;
  const int64_t key_head = head / (step.heads / step.key_heads);
  const int keys = step.key_dim, values = step.value_dim;
  Arena& arena = Arena::of_thread();
  const Tile<T> q = arena.tile<T>(1, keys), k = arena.tile<T>(1, keys), v = arena.tile<T>(1, values);
  const Tile<T> out = arena.tile<T>(1, values), decay = arena.tile<T>(1, keys);
  read_rows(step.q, batch, 0, head, 1, keys, T(step.scale), q);
  read_rows(step.k, batch, 0, key_head, 1, keys, T(1), k);
  read_rows(step.v, batch, 0, key_head, 1, values, T(1), v);
  if (step.decays) read_rows(step.log_decay, batch, 0, head, 1, step.decays, T(1), decay);
  for (int i = 0; i < step.decays; ++i) decay.data[i] = std::exp(decay.data[i]);
  const int64_t first = number * keys * values;
  const T* old = static_cast<const T*>(step.old_state) + first;
  T* state = static_cast<T*>(step.state) + first;
  for (int64_t i = 0; i < keys; ++i) {
    const T factor = step.decays == 0 ? T(1) : decay.data[step.decays == 1 ? 0 : i];
    advance_row(old + i * values, state + i * values, v.data, out.data, factor, k.data[i], q.data[i], values);
  }
  write_rows(out, step.out, batch, 0, head, 1, values);
}

}  // namespace attensor

ATTENSOR_LAYOUT(linear_attention_step, attensor::Step, q, k, v, log_decay, out, old_state, state, batch, heads,
                key_heads, key_dim, value_dim, decays, threads, scale)

// 1 when all went well; 0: out of memory.
ATTENSOR_EXPORT int ATTENSOR_NAME(linear_attention_step)(const attensor::Step* step) {
  return attensor::run_tasks(step->batch * step->heads, step->threads,
                             [&](int64_t number) { attensor::advance<ATTENSOR_REAL>(*step, number); });
}
