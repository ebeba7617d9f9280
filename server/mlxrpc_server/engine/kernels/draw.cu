// The next token of every row, in one launch: a block takes one row.
//
// The same filters, order and noise as in engine/sampling.py: top_p, min_p, top_k, then temperature and Gumbel noise
// from a hash. Nothing is sorted: a filter's edge is searched in histograms, with the masses as integers,
// so that no order of additions shows. A token is known by its distance below the row's likeliest, as the float's bits.

namespace mlxrpc {

constexpr int BINS = 2048;
// The first histogram's bins to a unit of distance. What is farther away than all bins has no mass that an integer shows.
constexpr float FINE = 64.f;
constexpr float MASS = 2147483648.f;
constexpr uint32_t ALL_KEYS = 0xffffffffu;
#define NOTHING (-__int_as_float(0x7f800000))

template <typename T, typename F>
__device__ void each(const T* logits, int width, F visit) {
  constexpr int VECTOR = 16 / sizeof(T);
  const int threads = blockDim.x;
  const int misplaced = static_cast<int>(reinterpret_cast<uint64_t>(logits) % 16 / sizeof(T));
  const int head = min(width, misplaced ? VECTOR - misplaced : 0);
  for (int i = threadIdx.x; i < head; i += threads) visit(i, static_cast<float>(logits[i]));
  const uint4* vectors = reinterpret_cast<const uint4*>(logits + head);
  const int count = (width - head) / VECTOR;
#pragma unroll 2
  for (int at = threadIdx.x; at < count; at += threads) {
    const uint4 raw = vectors[at];
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
      visit(head + at * VECTOR + i, static_cast<float>(reinterpret_cast<const T*>(&raw)[i]));
  }
  for (int i = head + count * VECTOR + threadIdx.x; i < width; i += threads) visit(i, static_cast<float>(logits[i]));
}

struct Best {
  float score;
  uint32_t id;

  __device__ void take(float other, uint32_t at) {
    if (other > score || (other == score && at < id)) score = other, id = at;
  }
};

__device__ Best best_of_block(Best mine) {
  __shared__ float scores[32];
  __shared__ uint32_t ids[32];
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  for (int apart = 16; apart > 0; apart /= 2) {
    const float score = __shfl_xor_sync(0xffffffffu, mine.score, apart);
    mine.take(score, __shfl_xor_sync(0xffffffffu, mine.id, apart));
  }
  if (lane == 0) scores[threadIdx.x / 32] = mine.score, ids[threadIdx.x / 32] = mine.id;
  __syncthreads();
  Best best = {scores[0], ids[0]};
  for (int w = 1; w < warps; w++) best.take(scores[w], ids[w]);
  __syncthreads();
  return best;
}

__device__ float sum_of_block(float mine) {
  __shared__ float sums[32];
  const int warps = blockDim.x / 32;
  for (int apart = 16; apart > 0; apart /= 2) mine += __shfl_xor_sync(0xffffffffu, mine, apart);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = mine;
  __syncthreads();
  float sum = 0.f;
  for (int w = 0; w < warps; w++) sum += sums[w];
  __syncthreads();
  return sum;
}

// Where a histogram's running weight reaches a target: the bin, the weight before it, and its own.
struct Crossing {
  int bin;
  uint32_t before, weight;
};

struct Histogram {
  uint32_t weight[BINS], least[BINS], most[BINS];

  __device__ void clear() {
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) weight[bin] = 0, least[bin] = ALL_KEYS, most[bin] = 0;
    __syncthreads();
  }

  // `share` of all weight, where it is not negative, is the target instead; gives the target back.
  __device__ Crossing crossing(uint32_t& target, float share) const {
    __shared__ uint32_t sums[32];
    __shared__ Crossing found;
    const int each_thread = BINS / blockDim.x, first = threadIdx.x * each_thread, lane = threadIdx.x % 32;
    __syncthreads();
    uint32_t mine = 0;
    for (int i = 0; i < each_thread; i++) mine += weight[first + i];
    uint32_t upto = mine;
    for (int apart = 1; apart < 32; apart *= 2) {
      const uint32_t other = __shfl_up_sync(0xffffffffu, upto, apart);
      if (lane >= apart) upto += other;
    }
    if (lane == 31) sums[threadIdx.x / 32] = upto;
    if (threadIdx.x == 0) found = {-1, 0, 0};
    __syncthreads();
    uint32_t before = upto - mine, all = 0;
    for (int w = 0; w < static_cast<int>(blockDim.x) / 32; w++) {
      if (w < static_cast<int>(threadIdx.x) / 32) before += sums[w];
      all += sums[w];
    }
    if (share >= 0.f) target = max(1u, static_cast<uint32_t>(ceil(static_cast<double>(share) * all)));
    for (int i = 0; i < each_thread; i++) {
      const uint32_t its = weight[first + i];
      if (before < target && target <= before + its) found = {first + i, before, its};
      before += its;
    }
    __syncthreads();
    const Crossing result = found;
    __syncthreads();
    return result;
  }
};

// The key at which the running weight, in the keys' order, reaches a target that is given as what is `left` of it.
struct Edge {
  uint32_t key, left, weight;
};

// Within keys of [low, high] alone. `visit` calls its argument with (key, weight) for every token there.
template <typename F>
__device__ Edge edge_within(Histogram& histogram, uint32_t low, uint32_t high, uint32_t left, F visit) {
  uint32_t weight = left;
  while (low < high) {
    const int bits = 32 - __clz(high - low), shift = bits > 11 ? bits - 11 : 0;
    histogram.clear();
    visit([&](uint32_t key, uint32_t its) {
      if (key < low || key > high || its == 0) return;
      const uint32_t bin = (key - low) >> shift;
      atomicAdd(&histogram.weight[bin], its);
      atomicMin(&histogram.least[bin], key);
      atomicMax(&histogram.most[bin], key);
    });
    const Crossing at = histogram.crossing(left, -1.f);
    if (at.bin < 0) break;
    left -= at.before, weight = at.weight;
    low = histogram.least[at.bin], high = histogram.most[at.bin];
    __syncthreads();
  }
  return {low, left, weight};
}

__device__ uint32_t mixed(uint32_t bits) {
  bits = (bits ^ (bits >> 16)) * 0x7FEB352Du;
  bits = (bits ^ (bits >> 15)) * 0x846CA68Bu;
  return bits ^ (bits >> 16);
}

__device__ uint32_t row_key(uint32_t low, uint32_t high, uint32_t position, uint32_t salt) {
  return mixed(mixed(mixed(low ^ salt) ^ high) ^ position);
}

// Floats in order as integers, for one atomic maximum.
__device__ int ordered(float number) {
  const int bits = static_cast<int>(__float_as_uint(number));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
__device__ float unordered(int bits) { return __int_as_float(bits ^ ((bits >> 31) & 0x7fffffff)); }

// No noise from these bits is above it: -log(u), and u is at least the bits' highest one.
__device__ float noise_at_most(uint32_t bits) { return static_cast<float>(__clz(bits) + 1) * 0.6931472f; }

__device__ float noise(uint32_t bits) {
  const float uniform = fminf((static_cast<float>(bits) + 0.5f) * 2.3283064365386963e-10f, 0.99999994f);
  return -logf(-log1pf(-uniform));
}

template <typename T>
struct Row {
  const T* logits;
  int width;
  float most, sum;

  __device__ float distance(float logit) const { return most - logit; }
  __device__ uint32_t key(float logit) const { return __float_as_uint(distance(logit)); }
  __device__ uint32_t mass(float logit) const {
    return static_cast<uint32_t>(rintf(__expf(-distance(logit)) / sum * MASS));
  }

  // Up to a share of all mass (where it is not negative), or up to so many tokens.
  template <typename F>
  __device__ Edge edge(Histogram& histogram, float share, uint32_t count, F weigh) const {
    histogram.clear();
    uint32_t far = 0;
    each(logits, width, [&](int, float logit) {
      const uint32_t weight = weigh(logit);
      const int bin = static_cast<int>(fminf(distance(logit) * FINE, BINS - 1.f));
      // So many may be there that their additions, one after another, would take longer than all the others.
      if (bin == BINS - 1) far += weight;
      else if (weight) atomicAdd(&histogram.weight[bin], weight);
    });
    if (far) atomicAdd(&histogram.weight[BINS - 1], far);
    uint32_t left = count;
    const Crossing at = histogram.crossing(left, share);
    if (at.bin < 0) return {ALL_KEYS, 0, 0};
    const uint32_t low = __float_as_uint(at.bin / FINE);
    const uint32_t high = at.bin == BINS - 1 ? ALL_KEYS : __float_as_uint((at.bin + 1) / FINE) - 1;
    return edge_within(histogram, low, high, left - at.before, [&](auto take) {
      each(logits, width, [&](int, float logit) { take(key(logit), weigh(logit)); });
    });
  }
};

// numbers [rows, 4]: temperature (0: greedy), top_p, min_p, unused; settings [rows, 4]: top_k, the seed's halves, unused
template <typename T>
__device__ void draw(const T* all_logits, int width, const uint32_t* positions, const float* numbers,
                     const uint32_t* settings, uint32_t* tokens) {
  __shared__ Histogram histogram;
  const int at = blockIdx.x;
  Row<T> row = {all_logits + static_cast<size_t>(at) * width, width, 0.f, 0.f};
  const float temperature = numbers[4 * at], top_p = numbers[4 * at + 1], min_p = numbers[4 * at + 2];
  const uint32_t top_k = settings[4 * at];

  Best best = {NOTHING, 0};
  if (temperature == 0.f) {
    each(row.logits, width, [&](int id, float logit) { best.take(logit, id); });
    best = best_of_block(best);
    if (threadIdx.x == 0) tokens[at] = best.id;
    return;
  }

  float most = NOTHING, sum = 0.f;
  each(row.logits, width, [&](int, float logit) {
    const float above = logit - most;
    if (logit == NOTHING) return;
    if (top_p >= 1.f) {
      most = fmaxf(most, logit);
      return;
    }
    const float ratio = __expf(-fabsf(above));
    sum = above > 0.f ? sum * ratio + 1.f : sum + ratio;
    most = fmaxf(most, logit);
  });
  best.take(most, 0);
  row.most = best_of_block(best).score;
  row.sum = sum_of_block(most == NOTHING ? 0.f : sum * expf(most - row.most));

  uint32_t nucleus = ALL_KEYS;
  if (top_p < 1.f) nucleus = row.edge(histogram, top_p, 0, [&](float logit) { return row.mass(logit); }).key;

  uint32_t last_key = ALL_KEYS, last_id = ALL_KEYS;
  if (top_k > 0 && top_k < static_cast<uint32_t>(width)) {
    const Edge edge = row.edge(histogram, -1.f, top_k, [](float) { return 1u; });
    last_key = edge.key;
    if (edge.weight > edge.left)
      last_id = edge_within(histogram, 0, width - 1, edge.left, [&](auto take) {
        each(row.logits, width, [&](int id, float logit) { take(id, row.key(logit) == last_key ? 1u : 0u); });
      }).key;
  }

  const float least = logf(min_p), inverse = 1.f / temperature;
  const uint32_t low = settings[4 * at + 1], high = settings[4 * at + 2];
  const uint32_t first = row_key(low, high, positions[at], 0x9E3779B9u);
  const uint32_t second = row_key(low, high, positions[at], 0xC2B2AE35u);
  // The best score that any thread has found: what cannot reach it needs no noise. It changes no result, whoever is first.
  __shared__ volatile int found;
  if (threadIdx.x == 0) found = ordered(NOTHING);
  __syncthreads();
  best = {NOTHING, 0};
  each(row.logits, width, [&](int id, float logit) {
    const float below = logit - row.most;
    const uint32_t key = row.key(logit);
    if (key > nucleus || !(below >= least) || key > last_key) return;
    if (key == last_key && static_cast<uint32_t>(id) > last_id) return;
    const uint32_t bits = mixed(mixed(first ^ (static_cast<uint32_t>(id) * 0x85EBCA6Bu)) + second);
    const float about = below * inverse, known = unordered(found);
    if (about + noise_at_most(bits) + 1e-4f * (1.f + fabsf(about)) < known) return;
    const float score = below / temperature + noise(bits);
    best.take(score, id);
    if (score > known) atomicMax(const_cast<int*>(&found), ordered(score));
  });
  best = best_of_block(best);
  if (threadIdx.x == 0) tokens[at] = best.id;
}

}  // namespace mlxrpc
