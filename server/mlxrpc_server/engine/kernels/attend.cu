// One decoding step's attention over rows of any length, whose keys and values lie in pages.
//
// A block takes one part of one row for one key-value head, and the queries that share that head. Where a row has several
// parts, the last block to finish puts them together. The new token's key and value come from the inputs; they are
// written into the row's page beside the reading, so that a step needs no launch of its own for that.
//
//   table    [rows, width]: the address of each page's first key, in the first layer
//   lengths  [rows]: tokens of each row that are in its pages
//   work     tokens of a part, then (row, part) for each block; a row's parts stand side by side, from the first
//   place    this layer's bytes behind a page's address, for keys and for values; the window (0: none); the scale's bits;
//            then what a Turn wants
//   counters [rows, HKV]: parts that are done, zero before and after

#ifndef RING
#define RING(name) extern __shared__ uint4 name[]
#endif

namespace mlxrpc {

constexpr float LEAST = -1e30f;

template <typename T, int D>
struct Head {
  static constexpr int VECTOR = 16 / sizeof(T);
  static constexpr int VECTORS = D / VECTOR;
  // The lanes that share a token's head: a power of two, some of them idle where a head has fewer loads than that.
  static constexpr int LANES = VECTORS > 16 ? 32 : VECTORS > 8 ? 16 : 8;
  static constexpr int LOADS = (VECTORS + LANES - 1) / LANES;
  static constexpr int NUMBERS = LOADS * VECTOR;
  static_assert(D % VECTOR == 0, "a head is whole loads of 16 bytes");

  uint4 raw[LOADS];

  // Into a ring in shared memory, while other tokens are computed with. A lane takes what it has fetched itself.
  __device__ static void fetch(uint4* ring, const T* from, int lane, bool wanted) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int vector = i * LANES + lane;
      const bool mine = wanted && vector < VECTORS;
      copy_later(ring + 32 * i, reinterpret_cast<const uint4*>(from) + (mine ? vector : 0), mine);
    }
  }

  __device__ void take(const uint4* ring) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) raw[i] = ring[32 * i];
  }

  __device__ void load(const T* from, int lane, bool wanted) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int vector = i * LANES + lane;
      raw[i] = wanted && vector < VECTORS ? reinterpret_cast<const uint4*>(from)[vector] : make_uint4(0, 0, 0, 0);
    }
  }

  __device__ void store(T* to, int lane) const {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int vector = i * LANES + lane;
      if (vector < VECTORS) reinterpret_cast<uint4*>(to)[vector] = raw[i];
    }
  }

  __device__ float operator[](int i) const { return static_cast<float>(reinterpret_cast<const T*>(raw)[i]); }
};

// What a lane knows of the queries that its warp answers: the largest score, the weights' sum, the weighted values.
template <typename T, int D, int HEADS>
struct Answer {
  using Vectors = Head<T, D>;

  float query[HEADS][Vectors::NUMBERS];
  float most[HEADS], sum[HEADS], values[HEADS][Vectors::NUMBERS];

  __device__ void ask(const T* queries, int lane, int heads, float scale) {
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      Vectors q;
      q.load(queries + h * D, lane, h < heads);
      most[h] = LEAST, sum[h] = 0.f;
#pragma unroll
      for (int i = 0; i < Vectors::NUMBERS; i++) query[h][i] = q[i] * scale, values[h][i] = 0.f;
    }
  }

  template <int TOKENS>
  __device__ void hear(const Vectors (&key)[TOKENS], const Vectors (&value)[TOKENS], const bool (&seen)[TOKENS]) {
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float score[TOKENS];
#pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        score[t] = 0.f;
#pragma unroll
        for (int i = 0; i < Vectors::NUMBERS; i++) score[t] += query[h][i] * key[t][i];
      }
#pragma unroll
      for (int apart = Vectors::LANES / 2; apart > 0; apart /= 2)
#pragma unroll
        for (int t = 0; t < TOKENS; t++) score[t] += __shfl_xor_sync(0xffffffffu, score[t], apart);
      float now = most[h];
#pragma unroll
      for (int t = 0; t < TOKENS; t++) now = seen[t] ? fmaxf(now, score[t]) : now;
      const float before = exp2f(most[h] - now);
      most[h] = now, sum[h] *= before;
#pragma unroll
      for (int i = 0; i < Vectors::NUMBERS; i++) values[h][i] *= before;
#pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        const float weight = seen[t] ? exp2f(score[t] - now) : 0.f;
        sum[h] += weight;
#pragma unroll
        for (int i = 0; i < Vectors::NUMBERS; i++) values[h][i] += weight * value[t][i];
      }
    }
  }

  // Lanes that hold the same numbers of other tokens put theirs together.
  __device__ void gather() {
#pragma unroll
    for (int apart = Vectors::LANES; apart < 32; apart *= 2)
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        const float now = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], apart));
        const float mine = exp2f(most[h] - now);
        most[h] = now, sum[h] *= mine;
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], apart);
#pragma unroll
        for (int i = 0; i < Vectors::NUMBERS; i++) {
          values[h][i] *= mine;
          values[h][i] += __shfl_xor_sync(0xffffffffu, values[h][i], apart);
        }
      }
  }
};

// Queries and keys come as they are to be attended to.
struct Still {
  static constexpr bool TURNS = false;
};

// Queries and keys come as a product gave them: a head is normed, where the model does that, and turned by its position.
// A warp takes a head, and a lane has both numbers of a pair. Of the head's pairs the first DIMS / 2 turn.
//
// From `place`: eps's bits; then floats: the queries' weights, the key's, as far as they are normed; one over each
// pair's frequency.
template <typename T, int D, int DIMS, bool TRADITIONAL, bool QUERY_NORM, bool KEY_NORM>
struct Turn {
  static constexpr bool TURNS = true;
  static constexpr int PAIRS = (D / 2 + 31) / 32;
  static_assert(DIMS % 2 == 0 && DIMS <= D, "whole pairs turn");

  // As they are in memory: to convert them would be to wait for them, before the ring's loads are on their way.
  T raw[PAIRS][2];
  float weights[PAIRS][2], inverse[PAIRS], eps;
  bool normed;

  __device__ static int pair(int p) { return 32 * p + threadIdx.x % 32; }
  __device__ static bool there(int p) { return pair(p) < D / 2; }
  __device__ static bool turns(int p) { return pair(p) < DIMS / 2; }
  __device__ static int at(int p, int which) {
    return TRADITIONAL || !turns(p) ? 2 * pair(p) + which : pair(p) + which * (DIMS / 2);
  }

  __device__ void load(const T* head, bool key, const int64_t* place) {
    const float* given = reinterpret_cast<const float*>(place + 5);
    eps = __int_as_float(static_cast<int>(place[4]));
    normed = key ? KEY_NORM : QUERY_NORM;
#pragma unroll
    for (int p = 0; p < PAIRS; p++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if (there(p)) raw[p][i] = head[at(p, i)];
        weights[p][i] = there(p) && normed ? given[(key && QUERY_NORM ? D : 0) + at(p, i)] : 0.f;
      }
      inverse[p] = turns(p) ? given[D * (QUERY_NORM + KEY_NORM) + pair(p)] : 0.f;
    }
  }

  // Rounded where MLX's own operations round.
  __device__ void norm(float (&numbers)[PAIRS][2]) const {
    float squares = 0.f;
#pragma unroll
    for (int p = 0; p < PAIRS; p++) squares += numbers[p][0] * numbers[p][0] + numbers[p][1] * numbers[p][1];
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, apart);
    const float by = rsqrtf(squares / D + eps);
#pragma unroll
    for (int p = 0; p < PAIRS; p++)
#pragma unroll
      for (int i = 0; i < 2; i++) numbers[p][i] = rounded(rounded(numbers[p][i] * by) * weights[p][i]);
  }

  __device__ void store(T* to, int position) const {
    float numbers[PAIRS][2];
#pragma unroll
    for (int p = 0; p < PAIRS; p++)
#pragma unroll
      for (int i = 0; i < 2; i++) numbers[p][i] = there(p) ? static_cast<float>(raw[p][i]) : 0.f;
    if (normed) norm(numbers);
#pragma unroll
    for (int p = 0; p < PAIRS; p++) {
      float sine = 0.f, cosine = 1.f;
      if (turns(p)) sincosf(static_cast<float>(position) * inverse[p], &sine, &cosine);
      if (there(p)) {
        to[at(p, 0)] = static_cast<T>(numbers[p][0] * cosine - numbers[p][1] * sine);
        to[at(p, 1)] = static_cast<T>(numbers[p][0] * sine + numbers[p][1] * cosine);
      }
    }
  }

  __device__ static float rounded(float number) { return static_cast<float>(static_cast<T>(number)); }
};

// Four queries to a warp at most: with more, registers would run short. Warps with other queries read the same tokens.
template <int G>
struct Warps {
  static constexpr int ROLES = (G + 3) / 4;
  static constexpr int HEADS = (G + ROLES - 1) / ROLES;
  static constexpr int TEAMS = ROLES >= 8 ? 1 : 8 / ROLES;
  static constexpr int ALL = ROLES * TEAMS;
};

template <typename T, int D, int HKV, int G, int PAGE, int STAGES, typename TURN = Still>
__device__ void attend(const T* q, const T* k, const T* v, const uint64_t* table, int width, const int* lengths,
                       const int* work, const int64_t* place, uint32_t* counters, T* out, float* partials) {
  using Vectors = Head<T, D>;
  using W = Warps<G>;
  constexpr int UNROLL = Vectors::LOADS > 1 ? 2 : 4;
  constexpr int GROUPS = 32 / Vectors::LANES;
  constexpr int TILE = W::TEAMS * GROUPS * UNROLL;
  constexpr int PARTIAL = G * (D + 2);
  // Of a warp's place in the ring: for one token, and for the keys or the values of a tile.
  constexpr int EACH = 32 * Vectors::LOADS, TAKEN = UNROLL * EACH;
  static_assert(PAGE % UNROLL == 0, "tokens that are read together lie in one page");

  const int item = blockIdx.x / HKV, head = blockIdx.x % HKV;
  const int chunk = work[0], row = work[1 + 2 * item], part = work[2 + 2 * item];
  const int length = lengths[row], window = static_cast<int>(place[2]);
  const int least = window > 0 ? max(0, length + 1 - window) : 0;
  const int first_part = least / chunk, last_part = length / chunk;
  if (part < first_part || part > last_part) return;

  const int warp = threadIdx.x / 32, role = warp % W::ROLES, team = warp / W::ROLES;
  const int group = threadIdx.x % 32 / Vectors::LANES, lane = threadIdx.x % Vectors::LANES;
  const int heads = min(W::HEADS, G - role * W::HEADS);
  const size_t queries = (static_cast<size_t>(row) * HKV + head) * G;
  const uint64_t* pages = table + static_cast<size_t>(row) * width;
  const size_t in_page = static_cast<size_t>(head) * PAGE * D;

  const size_t one = (static_cast<size_t>(row) * HKV + head) * D;
  const float scale = __int_as_float(static_cast<int>(place[3])) * 1.44269504f;

  RING(ring);
  // Behind the ring: the queries and, in the last part, the key.
  T* turned = reinterpret_cast<T*>(ring + W::ALL * STAGES * 2 * TAKEN);
  const int turning = part == last_part ? G + 1 : G;
  TURN turn;
  const auto load = [&](auto& turn, int h) { turn.load(h < G ? q + (queries + h) * D : k + one, h == G, place); };
  Answer<T, D, W::HEADS> answer;
  if constexpr (TURN::TURNS) {
    if (warp < turning) load(turn, warp);
  } else {
    answer.ask(q + (queries + role * W::HEADS) * D, lane, heads, scale);
  }

  const int begin = max(part * chunk, least), end = min((part + 1) * chunk, length);
  const int first = begin / UNROLL * UNROLL, tiles = end > first ? (end - first + TILE - 1) / TILE : 0;
  const int token = first + (team * GROUPS + group) * UNROLL;
  uint4* mine = ring + warp * STAGES * 2 * TAKEN + threadIdx.x % 32;
  const auto page_of = [&](int tile) { return token + tile * TILE < end ? pages[(token + tile * TILE) / PAGE] : 0; };
  const auto seen_in = [&](int tile, int t) { return token + tile * TILE + t >= begin && token + tile * TILE + t < end; };
  const auto fetch = [&](int tile, uint64_t page) {
    if (tile < tiles) {
      uint4* stage = mine + tile % STAGES * 2 * TAKEN;
      // Where there is nothing to fetch there still is an address, though nothing is read from it.
      const uint64_t at = page ? page : pages[0];
      const size_t in = in_page + (token + tile * TILE) % PAGE * D;
      const T* keys = reinterpret_cast<const T*>(at + place[0]) + in;
      const T* values = reinterpret_cast<const T*>(at + place[1]) + in;
#pragma unroll
      for (int t = 0; t < UNROLL; t++) Vectors::fetch(stage + t * EACH, keys + t * D, lane, seen_in(tile, t));
#pragma unroll
      for (int t = 0; t < UNROLL; t++) Vectors::fetch(stage + TAKEN + t * EACH, values + t * D, lane, seen_in(tile, t));
    }
    end_of_group();
  };
#pragma unroll
  for (int tile = 0; tile < STAGES - 1; tile++) fetch(tile, page_of(tile));
  uint64_t page = page_of(STAGES - 1);
  if constexpr (TURN::TURNS) {
    for (int h = warp; h < turning; h += W::ALL) {
      if (h > warp) load(turn, h);
      turn.store(turned + h * D, length);
    }
    __syncthreads();
    answer.ask(turned + role * W::HEADS * D, lane, heads, scale);
  }
  for (int tile = 0; tile < tiles; tile++) {
    fetch(tile + STAGES - 1, page);
    page = page_of(tile + STAGES);
    wait_for_all_but<STAGES - 1>();
    const uint4* stage = mine + tile % STAGES * 2 * TAKEN;
    Vectors key[UNROLL], value[UNROLL];
    bool seen[UNROLL];
#pragma unroll
    for (int t = 0; t < UNROLL; t++) {
      key[t].take(stage + t * EACH);
      value[t].take(stage + TAKEN + t * EACH);
      seen[t] = seen_in(tile, t);
    }
    answer.hear(key, value, seen);
  }

  if (part == last_part && team == 0) {
    Vectors key[1], value[1];
    const bool seen[1] = {group == 0};
    key[0].load(TURN::TURNS ? turned + G * D : k + one, lane, true);
    value[0].load(v + one, lane, true);
    answer.hear(key, value, seen);
    if (role == 0 && group == 0) {
      const uint64_t last = pages[length / PAGE];
      key[0].store(reinterpret_cast<T*>(last + place[0]) + in_page + length % PAGE * D, lane);
      value[0].store(reinterpret_cast<T*>(last + place[1]) + in_page + length % PAGE * D, lane);
    }
  }
  answer.gather();

  __shared__ float all_most[W::ALL][W::HEADS], all_sums[W::ALL][W::HEADS], all_values[W::ALL][W::HEADS][D];
#pragma unroll
  for (int h = 0; h < W::HEADS; h++) {
    if (threadIdx.x % 32 == 0) all_most[warp][h] = answer.most[h], all_sums[warp][h] = answer.sum[h];
#pragma unroll
    for (int i = 0; i < Vectors::NUMBERS; i++) {
      const int vector = i / Vectors::VECTOR * Vectors::LANES + lane;
      if (group == 0 && vector < Vectors::VECTORS)
        all_values[warp][h][vector * Vectors::VECTOR + i % Vectors::VECTOR] = answer.values[h][i];
    }
  }
  __syncthreads();

  const bool alone = first_part == last_part;
  float* partial = partials + (static_cast<size_t>(item) * HKV + head) * PARTIAL;
  for (int e = threadIdx.x; e < G * D; e += W::ALL * 32) {
    const int g = e / D, d = e % D, of = g / W::HEADS, h = g % W::HEADS;
    float most = LEAST, sum = 0.f, value = 0.f;
#pragma unroll
    for (int t = 0; t < W::TEAMS; t++) most = fmaxf(most, all_most[t * W::ROLES + of][h]);
#pragma unroll
    for (int t = 0; t < W::TEAMS; t++) {
      const float weight = exp2f(all_most[t * W::ROLES + of][h] - most);
      sum += weight * all_sums[t * W::ROLES + of][h];
      value += weight * all_values[t * W::ROLES + of][h][d];
    }
    if (alone) {
      out[queries * D + e] = static_cast<T>(value / sum);
    } else {
      partial[e] = value;
      if (d == 0) partial[G * D + g] = most, partial[G * D + G + g] = sum;
    }
  }
  if (alone) return;

  __shared__ bool last;
  __threadfence();
  __syncthreads();
  uint32_t* counter = counters + row * HKV + head;
  if (threadIdx.x == 0) last = atomicAdd(counter, 1u) == static_cast<uint32_t>(last_part - first_part);
  __syncthreads();
  if (!last) return;
  if (threadIdx.x == 0) *counter = 0;
  __threadfence();
  const float* parts = partial + (static_cast<int64_t>(first_part) - part) * HKV * PARTIAL;
  for (int e = threadIdx.x; e < G * D; e += W::ALL * 32) {
    const int g = e / D;
    float most = LEAST, sum = 0.f, value = 0.f;
#pragma unroll 4
    for (int p = 0; p <= last_part - first_part; p++) {
      const float* from = parts + static_cast<size_t>(p) * HKV * PARTIAL;
      const float its_most = __ldcg(from + G * D + g);
      const float now = fmaxf(most, its_most), before = exp2f(most - now), weight = exp2f(its_most - now);
      most = now;
      sum = sum * before + weight * __ldcg(from + G * D + G + g);
      value = value * before + weight * __ldcg(from + e);
    }
    out[queries * D + e] = static_cast<T>(value / sum);
  }
}

}  // namespace mlxrpc
