// The chunked recurrence of linear attention for one head at a time, everything of a chunk in the cache.
//
//   out = A v + reading S          S_next = total S + writing^T v          (A, reading, writing, total: decay.h)
//
// Backward, with E the gradient of S_next:
//   dA = dO v^T     d(reading) = dO S^T     d(writing) = v E^T     dv = A^T dO + writing E
//   E_previous = total E + reading^T dO
//   dlog_decay_t = sum_{i >= t in the chunk} (q_i dq_i - k_i dk_i) + total sum_v(S E) + sum_j writing_j d(writing)_j
// The state before every `segment` chunks is kept by the forward pass, the others are computed anew.
// Source: arXiv:2312.06635, section 4 and appendix C; arXiv:2401.04658, algorithms 1 and 2.

#include <numeric>

#include "halving.h"

namespace attensor {

enum Kind : int32_t { kNone = 0, kConstant = 1, kToken = 2, kChannel = 3 };

// One call; rows of states: one a packed sequence, otherwise one. States are [rows, B, H, K, V] of the working type.
struct Call {
  Tensor q, k, v, out, log_decay;
  Tensor grad_out, grad_q, grad_k, grad_v, grad_decay;  // backward only; those of k, v and decays for each query head
  void *initial_state, *final_state, *checkpoints, *grad_initial, *grad_final;
  const int64_t* cu_seqlens;  // [rows + 1], or null: B sequences of all tokens
  int64_t batch, tokens, rows, checkpoint_bytes;
  int32_t heads, key_heads, decay_heads, key_dim, value_dim, chunk, segment, kind, threads;
  double scale;
};

// One sequence of the batch or of the packing.
struct Sequence {
  int64_t row = 0, batch = 0, first = 0, last, checkpoint;  // tokens first to last; number of its first checkpoint

  Sequence(const Call& call, int64_t number) : last(call.tokens) {
    if (call.cu_seqlens) {
      row = number % call.rows, batch = number / call.rows;
      first = std::clamp<int64_t>(call.cu_seqlens[row], 0, call.tokens);
      last = std::clamp<int64_t>(call.cu_seqlens[row + 1], first, call.tokens);
    } else {
      batch = number;
    }
    checkpoint = first / (static_cast<int64_t>(call.chunk) * call.segment) + row;
  }
};

// What both passes need: the head that is worked on, and its tokens chunk by chunk.
template <class T, class Decay>
struct Head {
  const Call& call;
  const Sequence sequence;
  int64_t head = 0;
  Tile<T> q, k, v, gate, state;  // backward: the state's gradient
  Decay decay;

  Head(const Call& c, const Sequence& s, Arena& arena)
      : call(c),
        sequence(s),
        q(arena.tile<T>(c.chunk, c.key_dim)),
        k(arena.tile<T>(c.chunk, c.key_dim)),
        v(arena.tile<T>(c.chunk, c.value_dim)),
        gate(arena.tile<T>(c.chunk, c.kind == kChannel ? c.key_dim : 1)),
        state(arena.tile<T>(c.key_dim, c.value_dim)),
        decay(arena, c.chunk, c.key_dim) {}

  // Work on another head, from this state on; null: zeros.
  void choose(int64_t number, void* states) {
    head = number;
    for (int i = 0; i < call.key_dim && !states; ++i) std::fill(state.row(i), state.row(i) + call.value_dim, T(0));
    if (states) copy_state(matrix_of(states, state_number()), state);
    if (call.kind != kConstant) return;
    read_rows(call.log_decay, sequence.batch, 0, decay_head(), 1, 1, T(1), gate);
    decay.set_constant(gate.row(0)[0], call.chunk);
  }

  int64_t key_head() const { return head / (call.heads / call.key_heads); }
  int64_t decay_head() const { return head / (call.heads / call.decay_heads); }
  int64_t state_number() const { return (sequence.row * call.batch + sequence.batch) * call.heads + head; }
  int64_t chunks() const { return (sequence.last - sequence.first + call.chunk - 1) / call.chunk; }
  int64_t token(int64_t chunk) const { return sequence.first + chunk * call.chunk; }
  int length(int64_t chunk) const {
    return static_cast<int>(std::min<int64_t>(call.chunk, sequence.last - token(chunk)));
  }

  // The state kept before segment `number`.
  Tile<T> checkpoint(int64_t number) const {
    return matrix_of(call.checkpoints,
                     ((sequence.checkpoint + number) * call.batch + sequence.batch) * call.heads + head);
  }

  // Everything about a chunk, with `scale` times its queries.
  Answers<T> read(int64_t number, T scale) {
    read_rows(call.q, sequence.batch, token(number), head, length(number), call.key_dim, scale, q);
    read_keys(number);
    return decay.forward(q, k, length(number));
  }

  void read_keys(int64_t number) {
    const int64_t at = token(number);
    const int m = length(number);
    read_rows(call.k, sequence.batch, at, key_head(), m, call.key_dim, T(1), k);
    read_rows(call.v, sequence.batch, at, key_head(), m, call.value_dim, T(1), v);
    const int gates = call.kind == kChannel ? call.key_dim : 1;
    if (call.kind >= kToken) read_rows(call.log_decay, sequence.batch, at, decay_head(), m, gates, T(1), gate);
    decay.start(m, call.kind >= kToken ? &gate : nullptr);
  }

  // Have what chunk `number` reads and writes brought into the cache, if there is such a chunk.
  void expect(int64_t number) const {
    if (!expect_keys(number)) return;
    const int64_t at = token(number), batch = sequence.batch;
    const int m = length(number);
    expect_rows(call.q, batch, at, head, m, call.key_dim);
    if (call.out.data) {
      expect_rows(call.out, batch, at, head, m, call.value_dim, true);
    } else {
      expect_rows(call.grad_out, batch, at, head, m, call.value_dim);
      expect_rows(call.grad_q, batch, at, head, m, call.key_dim, true);
      expect_rows(call.grad_k, batch, at, head, m, call.key_dim, true);
      expect_rows(call.grad_v, batch, at, head, m, call.value_dim, true);
    }
  }

  // Keys, values and decays alone.
  bool expect_keys(int64_t number) const {
    Prefetch::of_thread().clear();
    if (number < 0 || number >= chunks()) return false;
    const int64_t at = token(number), batch = sequence.batch;
    const int m = length(number);
    expect_rows(call.k, batch, at, key_head(), m, call.key_dim);
    expect_rows(call.v, batch, at, key_head(), m, call.value_dim);
    if (call.kind == kChannel) expect_rows(call.log_decay, batch, at, decay_head(), m, call.key_dim);
    return true;
  }

  void advance(const Answers<T>& answers, const Tile<T>& to, int m) const {
    const Old old = answers.total ? Old::kScale : Old::kKeep;
    product(transposed(answers.writing), v, to, call.key_dim, call.value_dim, m, {.old = old, .factor = answers.total});
  }

  Tile<T> matrix_of(void* states, int64_t number) const {
    return matrix<T>(states, number, call.key_dim, call.value_dim);
  }

  void copy_state(const Tile<T>& from, const Tile<T>& to) const { copy_rows(from, to, call.key_dim, call.value_dim); }
};

template <class T, class Decay>
class Forward {
 public:
  Forward(const Call& call, const Sequence& sequence, Arena& arena)
      : call_(call), head_(call, sequence, arena), out_(arena.tile<T>(call.chunk, call.value_dim)) {}

  int64_t chunks() const { return head_.chunks(); }

  // Chunks `first` to `last` of one head; what was before is in the final state.
  void run(int64_t head, int64_t first, int64_t last) {
    head_.choose(head, first ? call_.final_state : call_.initial_state);
    for (int64_t chunk = first; chunk < last; ++chunk) {
      if (call_.checkpoint_bytes && chunk % call_.segment == 0)
        head_.copy_state(head_.state, head_.checkpoint(chunk / call_.segment));
      step(chunk);
    }
    head_.copy_state(head_.state, head_.matrix_of(call_.final_state, head_.state_number()));
  }

 private:
  void step(int64_t chunk) {
    const int m = head_.length(chunk), keys = call_.key_dim, values = call_.value_dim;
    const int64_t at = head_.token(chunk), batch = head_.sequence.batch;
    head_.expect(chunk + 1);
    const Answers<T> answers = head_.read(chunk, T(call_.scale));
    const Tile<T> to = place(call_.out, batch, at, head_.head, values, out_);
    product(plain(answers.scores), head_.v, out_, m, values, m, {.left = Shape::kLower});
    product(plain(answers.reading), head_.state, to, m, values, keys, {.old = Old::kKeep, .from = &out_});
    if (to.data == out_.data) write_rows(out_, call_.out, batch, at, head_.head, m, values);
    head_.advance(answers, head_.state, m);
  }

  const Call& call_;
  Head<T, Decay> head_;
  Tile<T> out_;
};

template <class T, class Decay>
class Backward {
 public:
  Backward(const Call& call, const Sequence& sequence, Arena& arena)
      : call_(call),
        head_(call, sequence, arena),
        grad_out_(arena.tile<T>(call.chunk, call.value_dim)),
        grad_v_(arena.tile<T>(call.chunk, call.value_dim)),
        values_(arena.tile<T>(call.value_dim, call.chunk)),
        turned_(arena.tile<T>(call.value_dim, call.key_dim)),
        grads_{arena.tile<T>(call.chunk, call.chunk),
               arena.tile<T>(call.chunk, call.key_dim),
               arena.tile<T>(call.chunk, call.key_dim),
               {},
               {}},
        at_end_(arena.tile<T>(1, call.key_dim)),
        single_(arena.take<T>(call.chunk)) {
    for (int i = 0; i < call.segment; ++i) states_.push_back(arena.tile<T>(call.key_dim, call.value_dim));
  }

  int64_t chunks() const { return head_.chunks(); }

  // Chunks `last` to `first` of one head; `first` begins a segment, what comes after is in the initial gradient.
  void run(int64_t head, int64_t first, int64_t last) {
    head_.choose(head, last < chunks() ? call_.grad_initial : call_.grad_final);
    constant_ = 0;
    const int64_t segment = call_.segment;
    for (int64_t start = (last - 1) / segment * segment; start >= first && start >= 0; start -= segment) {
      const int64_t end = std::min(last, start + segment);
      head_.copy_state(head_.checkpoint(start / segment), states_[0]);
      for (int64_t chunk = start; chunk + 1 < end; ++chunk) {
        head_.expect_keys(chunk + 1);
        head_.read_keys(chunk);
        const int m = head_.length(chunk);
        head_.copy_state(states_[chunk - start], states_[chunk - start + 1]);
        head_.advance(head_.decay.writing(head_.k, m), states_[chunk - start + 1], m);
      }
      for (int64_t chunk = end - 1; chunk >= start; --chunk) step(chunk, states_[chunk - start]);
    }
    head_.copy_state(head_.state, head_.matrix_of(call_.grad_initial, head_.state_number()));
    if (call_.kind == kConstant && call_.grad_decay.data)
      static_cast<T*>(call_.grad_decay.data)[head_.state_number()] += T(constant_);
  }

 private:
  // One chunk, given the state before it. The scale is in the gradient of the output.
  void step(int64_t chunk, const Tile<T>& state) {
    const int m = head_.length(chunk), keys = call_.key_dim, values = call_.value_dim;
    const int64_t at = head_.token(chunk), batch = head_.sequence.batch, head = head_.head;
    head_.expect(chunk - 1);
    const Answers<T> answers = head_.read(chunk, T(1));
    read_rows(call_.grad_out, batch, at, head, m, values, T(call_.scale), grad_out_);

    const Tile<T> to_v = place(call_.grad_v, batch, at, head, values, grad_v_);
    product(transposed(answers.scores), grad_out_, grad_v_, m, values, m, {.left = Shape::kLower});
    product(plain(answers.writing), head_.state, to_v, m, values, keys, {.old = Old::kKeep, .from = &grad_v_});
    if (to_v.data == grad_v_.data) write_rows(grad_v_, call_.grad_v, batch, at, head, m, values);

    transpose(head_.v, values_, m, values);
    product(plain(grad_out_), values_, grads_.scores, m, m, values, {.result = Shape::kLower});
    transpose(state, turned_, keys, values);
    product(plain(grad_out_), turned_, grads_.q, m, keys, values);
    transpose(head_.state, turned_, keys, values);
    product(plain(head_.v), turned_, grads_.k, m, keys, values);
    if (call_.grad_decay.data) find_decay_gradients(answers, state, m);
    finish_keys(at, m);
    if (call_.grad_decay.data) write_decay(at, m);

    const Old old = answers.total ? Old::kScale : Old::kKeep;
    product(transposed(answers.reading), grad_out_, head_.state, keys, values, m,
            {.old = old, .factor = answers.total});
  }

  // Gradients of queries, keys and decays.
  void finish_keys(int64_t at, int m) {
    const int64_t batch = head_.sequence.batch, head = head_.head;
    grads_.to_q = grads_.q, grads_.to_k = grads_.k;
    if constexpr (Decay::kIsSingle) {
      grads_.to_q = place(call_.grad_q, batch, at, head, call_.key_dim, grads_.q);
      grads_.to_k = place(call_.grad_k, batch, at, head, call_.key_dim, grads_.k);
    }
    head_.decay.backward(head_.q, head_.k, grads_, m);
    if (grads_.to_q.data == grads_.q.data) write_rows(grads_.q, call_.grad_q, batch, at, head, m, call_.key_dim);
    if (grads_.to_k.data == grads_.k.data) write_rows(grads_.k, call_.grad_k, batch, at, head, m, call_.key_dim);
  }

  // Single decays: their gradients. One for each channel: that of G_last, as far as it is not in q_i dq_i - k_i dk_i.
  void find_decay_gradients(const Answers<T>& answers, const Tile<T>& state, int m) {
    T* at_end = at_end_.row(0);
    for (int c = 0; c < call_.key_dim; ++c) {
      at_end[c] = dot(state.row(c), head_.state.row(c), call_.value_dim);
      if (answers.total) at_end[c] *= answers.total[c];
    }
    if constexpr (Decay::kIsSingle) {
      head_.decay.decay_gradients(answers, grads_, m, std::accumulate(at_end, at_end + call_.key_dim, T(0)), single_);
    } else {
      for (int j = 0; j < m; ++j)
        for (int c = 0; c < call_.key_dim; ++c) at_end[c] += answers.writing.row(j)[c] * grads_.k.row(j)[c];
    }
  }

  void write_decay(int64_t at, int m) {
    if constexpr (Decay::kIsSingle) {
      for (int i = 0; i < m; ++i) {
        constant_ += single_[i];
        head_.gate.row(i)[0] = single_[i];
      }
    } else {
      T* __restrict__ sum = at_end_.row(0);  // of the gradients of G over the tokens that follow
      for (int i = m - 1; i >= 0; --i) {
        const T *q = head_.q.row(i), *of_q = grads_.to_q.row(i), *k = head_.k.row(i), *of_k = grads_.to_k.row(i);
        for (int c = 0; c < call_.key_dim; ++c) head_.gate.row(i)[c] = sum[c] += q[c] * of_q[c] - k[c] * of_k[c];
      }
    }
    const int columns = Decay::kIsSingle ? 1 : call_.key_dim;
    if (call_.kind >= kToken)
      write_rows(head_.gate, call_.grad_decay, head_.sequence.batch, at, head_.head, m, columns);
  }

  const Call& call_;
  Head<T, Decay> head_;
  Tile<T> grad_out_, grad_v_, values_, turned_;
  Gradients<T> grads_;
  Tile<T> at_end_;
  T* single_;
  std::vector<Tile<T>> states_;
  double constant_ = 0;
};

// Heads of a sequence take turns every kTurn tokens: their rows share pages, whose addresses then stay known.
constexpr int kTurn = 256;

template <class Pass>
bool run_pass(const Call& call, bool is_backward) {
  const int64_t sequences = call.batch * call.rows;
  // so many groups of heads that every thread has something to do
  const int64_t wanted = sequences ? (call.threads + sequences - 1) / sequences : 1;
  const int64_t groups = std::clamp<int64_t>(wanted, 1, std::max(call.heads, 1));
  return run_tasks(sequences * groups, call.threads, [&](int64_t task) {
    Pass pass(call, Sequence(call, task / groups), Arena::of_thread());
    const int64_t first = task % groups * call.heads / groups, last = (task % groups + 1) * call.heads / groups;
    const int64_t span = round_up(std::max(1, kTurn / call.chunk), call.segment);
    const int64_t turns = std::max<int64_t>(1, (pass.chunks() + span - 1) / span);
    for (int64_t i = 0; i < turns; ++i) {
      const int64_t turn = is_backward ? turns - 1 - i : i;
      for (int64_t head = first; head < last; ++head)
        pass.run(head, turn * span, std::min((turn + 1) * span, pass.chunks()));
    }
  });
}

template <class T, class Decay>
bool run(const Call& call, bool is_backward) {
  for (const Tensor* x : {&call.out, &call.grad_q, &call.grad_k, &call.grad_v})
    expect_results(x->data, call.batch * call.tokens * x->token * bytes_of(x->storage));
  if (is_backward) return run_pass<Backward<T, Decay>>(call, true);
  expect_results(call.checkpoints, call.checkpoint_bytes);
  return run_pass<Forward<T, Decay>>(call, false);
}

template <class T>
bool run(const Call& call, bool is_backward) {
  if (call.kind == kChannel) return run<T, ChannelDecay<T>>(call, is_backward);
  return run<T, MaskedDecay<T>>(call, is_backward);
}

}  // namespace attensor

ATTENSOR_LAYOUT(linear_attention, attensor::Call, q, k, v, out, log_decay, grad_out, grad_q, grad_k, grad_v, grad_decay,
                initial_state, final_state, checkpoints, grad_initial, grad_final, cu_seqlens, batch, tokens, rows,
                checkpoint_bytes, heads, key_heads, decay_heads, key_dim, value_dim, chunk, segment, kind, threads,
                scale)

// 1 when all went well; 0: out of memory.
ATTENSOR_EXPORT int ATTENSOR_NAME(linear_attention)(const attensor::Call* call, int is_backward) {
  return attensor::run<ATTENSOR_REAL>(*call, is_backward);
}
