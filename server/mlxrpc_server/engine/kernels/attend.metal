// The twin of attend.cu for Apple's GPUs: the same parts, warps (here: simdgroups) and arithmetic.
//
// What differs: pages are arrays of their own and a table has their numbers, since an address is nothing that a kernel may
// follow there; rows in several parts are put together by a kernel of its own, since threadgroups cannot rely on seeing
// what others wrote; and a lane loads four numbers at a time.
//
//   work    tokens of a part, then (row, part) for each threadgroup; a row's parts stand side by side, from the first
//   place   the window (0: none), the scale's bits, the table's width
//
// The types of small arrays are left open: MLX gives those of a few numbers in another address space.

namespace mlxrpc {

using namespace metal;

constant constexpr float LEAST = -1e30f;

template <int D>
struct Head {
  static constant constexpr int VECTORS = D / 4;
  static constant constexpr int LANES = VECTORS > 16 ? 32 : 16;
  static constant constexpr int LOADS = (VECTORS + LANES - 1) / LANES;

  float4 numbers[LOADS];

  template <typename T>
  void load(const device T* from, int lane, bool wanted) thread {
    for (int i = 0; i < LOADS; i++) {
      const int vector = i * LANES + lane;
      numbers[i] = float4(0.f);
      if (wanted && vector < VECTORS)
        for (int j = 0; j < 4; j++) numbers[i][j] = static_cast<float>(from[4 * vector + j]);
    }
  }

  template <typename T>
  void copy(const device T* from, device T* to, int lane) const thread {
    for (int i = 0; i < LOADS; i++) {
      const int vector = i * LANES + lane;
      if (vector < VECTORS)
        for (int j = 0; j < 4; j++) to[4 * vector + j] = from[4 * vector + j];
    }
  }

  float times(const thread Head& other) const thread {
    float sum = 0.f;
    for (int i = 0; i < LOADS; i++) sum += dot(numbers[i], other.numbers[i]);
    for (int apart = LANES / 2; apart > 0; apart /= 2) sum += simd_shuffle_xor(sum, apart);
    return sum;
  }
};

template <int G, int D>
struct Warps {
  static constant constexpr int ROLES = (G + 3) / 4;
  static constant constexpr int HEADS = (G + ROLES - 1) / ROLES;
  // Half as many for the largest heads: what they put together has to find room in a threadgroup's memory.
  static constant constexpr int MOST = D > 128 ? 4 : 8;
  static constant constexpr int TEAMS = ROLES >= MOST ? 1 : MOST / ROLES;
  static constant constexpr int ALL = ROLES * TEAMS;
  static constant constexpr int SHARED = ALL * HEADS * (D + 2);
};

template <int D, int HEADS>
struct Answer {
  Head<D> query[HEADS], values[HEADS];
  float most[HEADS], sum[HEADS];

  void hear(const thread Head<D>& key, const thread Head<D>& value, bool seen) thread {
    for (int h = 0; h < HEADS; h++) {
      const float score = query[h].times(key);
      const float now = seen ? max(most[h], score) : most[h];
      const float before = exp2(most[h] - now), weight = seen ? exp2(score - now) : 0.f;
      most[h] = now;
      sum[h] = sum[h] * before + weight;
      for (int i = 0; i < Head<D>::LOADS; i++)
        values[h].numbers[i] = values[h].numbers[i] * before + weight * value.numbers[i];
    }
  }

  void gather() thread {
    for (int apart = Head<D>::LANES; apart < 32; apart *= 2)
      for (int h = 0; h < HEADS; h++) {
        const float now = max(most[h], simd_shuffle_xor(most[h], apart));
        const float mine = exp2(most[h] - now);
        most[h] = now;
        sum[h] *= mine;
        sum[h] += simd_shuffle_xor(sum[h], apart);
        for (int i = 0; i < Head<D>::LOADS; i++) {
          values[h].numbers[i] *= mine;
          values[h].numbers[i] += simd_shuffle_xor(values[h].numbers[i], apart);
        }
      }
  }
};

// `shared` has, for each simdgroup and query, the values, the largest score and the sum.
template <typename T, int D, int HKV, int G, int PAGE, bool SPLIT, typename Table, typename Lengths, typename Work,
          typename Place>
void attend(const device T* q, const device T* k, const device T* v, device T* key_pages, device T* value_pages,
            Table table, Lengths lengths, Work work, Place place, device T* out, device float* partials, threadgroup float* shared, uint block, uint thread_index) {
  using W = Warps<G, D>;
  constexpr int GROUPS = 32 / Head<D>::LANES;
  constexpr int TILE = W::TEAMS * GROUPS;
  const int item = block / HKV, head = block % HKV;
  const int chunk = work[0], row = work[1 + 2 * item], part = work[2 + 2 * item];
  const int length = lengths[row], window = place[0];
  const int least = window > 0 ? max(0, length + 1 - window) : 0;
  const int first_part = least / chunk, last_part = length / chunk;
  if (part < first_part || part > last_part) return;

  const int warp = thread_index / 32, role = warp % W::ROLES, team = warp / W::ROLES;
  const int group = thread_index % 32 / Head<D>::LANES, lane = thread_index % Head<D>::LANES;
  const size_t queries = (static_cast<size_t>(row) * HKV + head) * G;
  const auto pages = table + static_cast<size_t>(row) * place[2];
  const float scale = as_type<float>(place[1]) * 1.44269504f;

  Answer<D, W::HEADS> answer;
  for (int h = 0; h < W::HEADS; h++) {
    const int g = role * W::HEADS + h;
    answer.query[h].load(q + (queries + g) * D, lane, g < G);
    answer.most[h] = LEAST;
    answer.sum[h] = 0.f;
    for (int i = 0; i < Head<D>::LOADS; i++) {
      answer.query[h].numbers[i] *= scale;
      answer.values[h].numbers[i] = float4(0.f);
    }
  }

  const int begin = max(part * chunk, least), end = min((part + 1) * chunk, length);
  for (int base = begin; base < end; base += TILE) {
    const int token = base + team * GROUPS + group;
    const bool seen = token < end;
    const size_t at = seen ? ((static_cast<size_t>(pages[token / PAGE]) * HKV + head) * PAGE + token % PAGE) * D : 0;
    Head<D> key, value;
    key.load(key_pages + at, lane, seen);
    value.load(value_pages + at, lane, seen);
    answer.hear(key, value, seen);
  }
  if (part == last_part && team == 0) {
    const size_t one = (static_cast<size_t>(row) * HKV + head) * D;
    Head<D> key, value;
    key.load(k + one, lane, true);
    value.load(v + one, lane, true);
    answer.hear(key, value, group == 0);
    if (role == 0 && group == 0) {
      const size_t at = ((static_cast<size_t>(pages[length / PAGE]) * HKV + head) * PAGE + length % PAGE) * D;
      key.copy(k + one, key_pages + at, lane);
      value.copy(v + one, value_pages + at, lane);
    }
  }
  answer.gather();

  for (int h = 0; h < W::HEADS; h++) {
    threadgroup float* mine = shared + (warp * W::HEADS + h) * (D + 2);
    if (thread_index % 32 == 0) {
      mine[D] = answer.most[h];
      mine[D + 1] = answer.sum[h];
    }
    for (int i = 0; i < Head<D>::LOADS; i++) {
      const int vector = i * Head<D>::LANES + lane;
      if (group == 0 && vector < Head<D>::VECTORS)
        for (int j = 0; j < 4; j++) mine[4 * vector + j] = answer.values[h].numbers[i][j];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int e = thread_index; e < G * D; e += W::ALL * 32) {
    const int g = e / D, d = e % D;
    float most = LEAST, sum = 0.f, value = 0.f;
    for (int t = 0; t < W::TEAMS; t++) {
      const threadgroup float* its = shared + ((t * W::ROLES + g / W::HEADS) * W::HEADS + g % W::HEADS) * (D + 2);
      const float now = max(most, its[D]), before = exp2(most - now), weight = exp2(its[D] - now);
      most = now;
      sum = sum * before + weight * its[D + 1];
      value = value * before + weight * its[d];
    }
    if (SPLIT) {
      device float* partial = partials + (static_cast<size_t>(item) * HKV + head) * G * (D + 2);
      partial[e] = value;
      if (d == 0) {
        partial[G * D + g] = most;
        partial[G * D + G + g] = sum;
      }
    } else {
      out[queries * D + e] = static_cast<T>(value / sum);
    }
  }
}

// Puts a row's parts together, in the threadgroup of its first one.
template <typename T, int D, int HKV, int G, typename Lengths, typename Work, typename Place>
void combine(const device float* partials, Lengths lengths, Work work, Place place, device T* out, uint block, uint thread_index, uint threads) {
  const int item = block / HKV, head = block % HKV;
  const int chunk = work[0], row = work[1 + 2 * item], part = work[2 + 2 * item];
  const int length = lengths[row], window = place[0];
  const int first_part = (window > 0 ? max(0, length + 1 - window) : 0) / chunk, last_part = length / chunk;
  if (part != first_part) return;
  const size_t queries = (static_cast<size_t>(row) * HKV + head) * G;
  for (int e = thread_index; e < G * D; e += threads) {
    const int g = e / D;
    float most = LEAST, sum = 0.f, value = 0.f;
    for (int p = first_part; p <= last_part; p++) {
      const device float* its = partials + (static_cast<size_t>(item + p - first_part) * HKV + head) * G * (D + 2);
      const float now = max(most, its[G * D + g]), before = exp2(most - now), weight = exp2(its[G * D + g] - now);
      most = now;
      sum = sum * before + weight * its[G * D + G + g];
      value = value * before + weight * its[e];
    }
    out[queries * D + e] = static_cast<T>(value / sum);
  }
}

}  // namespace mlxrpc
