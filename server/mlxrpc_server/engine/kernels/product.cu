// Products of few rows with weights as they lie in a model, several weights with one input in one launch:
// out = x W^T + bias, in float32 on the tensor cores. And with it, where asked for:
//   NORMED  x goes through an RMS norm first
//   GATED   out = silu(x W^T + bias) * (x V^T + bias)
//   ADDED   out = to + x W^T + bias
//
// A block takes the numbers that TALL rows of one weight give with up to 8 * TILES rows of x. Its warps share that work by
// depth, which they add up at the end, and BESIDE of them stand side by side. Weights are the first operand, since they
// come in sixteens, and x in eights. A lane fetches sixteen bytes at a time, eight numbers of a row: in which order they
// are multiplied is nobody's concern, so they take the places that the tensor cores want of this lane. Likewise a lane's
// two rows of the weight are neighbours, so that it writes two numbers at once.
//
// The norm takes no pass of its own. Its weight is multiplied into W on the way, not into x: that might overflow in
// float16. What else it does to a row of x is one factor, known from the row's squares when all sums are.
// With a gate, BESIDE is two: the first warps have rows of W, the others the same rows of V.

#ifndef RING
#define RING(name) extern __shared__ uint4 name[]
#endif

namespace mlxrpc {

#if defined(__CUDA_ARCH__)
#define MULTIPLY_ADD(T, NAME)                                                                                        \
  __device__ void multiply_add(const T*, float4& sum, const uint4& a, uint32_t b0, uint32_t b1) {                   \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}," \
        " {%0, %1, %2, %3};"                                                                                         \
        : "+f"(sum.x), "+f"(sum.y), "+f"(sum.z), "+f"(sum.w)                                                         \
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));                                                 \
  }                                                                                                                  \
  __device__ uint32_t multiply_two(const T*, uint32_t a, uint32_t b) {                                               \
    uint32_t product;                                                                                                \
    asm("fma.rn." NAME "x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000));                      \
    return product;                                                                                                  \
  }
MULTIPLY_ADD(__half, "f16")
MULTIPLY_ADD(__nv_bfloat16, "bf16")
#undef MULTIPLY_ADD
#endif

template <typename T>
struct Layer {
  const T* weight;
  const T* bias;
  T* out;
  int width;
};

template <typename T>
struct Around {
  const T* norm;
  float eps;
  const T* to;
};

template <typename T, int TILES, int WIDE, int BESIDE, int STAGES, bool NORMED, bool GATED, bool ADDED>
struct Product {
  static constexpr int WARPS = 8, THREADS = WARPS * 32, DEEP = WARPS / BESIDE, TALL = 16 * WIDE * BESIDE;
  static constexpr int LOADS = 2 * WIDE * BESIDE + TILES + NORMED;  // of a warp's lanes, for 32 numbers of depth
  static constexpr int STAGE = DEEP * LOADS * 32;
  static constexpr int WIDTH = GATED ? TALL / 2 : TALL;  // of what a block stores
  static constexpr int PARTS = BESIDE * WIDE * TILES * 32, STORED = PARTS * WIDTH / TALL;
  static constexpr int TURNS = (STORED + THREADS - 1) / THREADS;
  static_assert(TILES % BESIDE == 0 && WARPS % TILES == 0 && (BESIDE == 2 || !GATED), "as a thread's parts and a gate want it");

  struct Sums {
    float4 products[WIDE][TILES] = {};
    float4 squares[(TILES / BESIDE + 1) / 2] = {};  // of two tiles each: above of the first, below of the second
  };

  const T* x;
  int rows, depth, first_row, first;
  Layer<T> layer, gated;
  Around<T> around;
  int lane = threadIdx.x % 32, beside = threadIdx.x / 32 % BESIDE, deep = threadIdx.x / 32 / BESIDE;

  __device__ uint4* at(uint4* ring, int step) const { return ring + step % STAGES * STAGE + deep * LOADS * 32 + lane; }

  __device__ void fetch(uint4* ring, int step) const {
    const int from = (step * DEEP + deep) * 32 + lane % 4 * 8;
    const bool within = from < depth;
    uint4* to = at(ring, step);
    const T* weight = GATED && beside ? gated.weight : layer.weight;
#pragma unroll
    for (int i = 0; i < 2 * WIDE; i++) {
      const int row = first + ((GATED ? 0 : beside * WIDE) + i / 2) * 16 + lane / 4 * 2 + i % 2;
      const bool wanted = within && row < layer.width;
      const size_t place = wanted ? static_cast<size_t>(row) * depth + from : 0;
      copy_later(to + (beside * 2 * WIDE + i) * 32, reinterpret_cast<const uint4*>(weight + place), wanted);
    }
#pragma unroll
    for (int t = 0; t < (TILES + BESIDE - 1) / BESIDE; t++) {
      const int tile = t * BESIDE + beside, row = first_row + tile * 8 + lane / 4;
      const bool wanted = within && row < rows;
      const size_t place = wanted ? static_cast<size_t>(row) * depth + from : 0;
      if (tile < TILES)
        copy_later(to + (BESIDE * 2 * WIDE + tile) * 32, reinterpret_cast<const uint4*>(x + place), wanted);
    }
    if (NORMED && beside == 0 && lane < 4)
      copy_later(to + (LOADS - 1) * 32, reinterpret_cast<const uint4*>(around.norm + (within ? from : 0)), within);
  }

  __device__ static uint4 multiplied(const uint4& a, const uint4& b) {
    const T* type = nullptr;
    return make_uint4(multiply_two(type, a.x, b.x), multiply_two(type, a.y, b.y), multiply_two(type, a.z, b.z),
                      multiply_two(type, a.w, b.w));
  }

  // Of eight rows with themselves: what is wanted lies on the diagonal.
  __device__ static void add_squares(float4& squares, const uint4& column, bool below) {
    const T* type = nullptr;
    const uint4 left = below ? make_uint4(0, column.x, 0, column.y) : make_uint4(column.x, 0, column.y, 0);
    const uint4 right = below ? make_uint4(0, column.z, 0, column.w) : make_uint4(column.z, 0, column.w, 0);
    multiply_add(type, squares, left, column.x, column.y);
    multiply_add(type, squares, right, column.z, column.w);
  }

  __device__ void add(const uint4* from, Sums& sums) const {
    const T* type = nullptr;
    uint4 even[WIDE], odd[WIDE], mine;
#pragma unroll
    for (int i = 0; i < WIDE; i++) {
      even[i] = from[(beside * 2 * WIDE + 2 * i) * 32];
      odd[i] = from[(beside * 2 * WIDE + 2 * i + 1) * 32];
    }
    if constexpr (NORMED) {
      const uint4 norm = from[(LOADS - 1) * 32 - lane + lane % 4];
#pragma unroll
      for (int i = 0; i < WIDE; i++) even[i] = multiplied(even[i], norm), odd[i] = multiplied(odd[i], norm);
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      const uint4 column = from[(BESIDE * 2 * WIDE + t) * 32];
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        float4& sum = sums.products[i][t];
        multiply_add(type, sum, make_uint4(even[i].x, odd[i].x, even[i].y, odd[i].y), column.x, column.y);
        multiply_add(type, sum, make_uint4(even[i].z, odd[i].z, even[i].w, odd[i].w), column.z, column.w);
      }
      if constexpr (NORMED) {  // those beside have the same rows: each squares every second tile
        if (t % BESIDE == 0 || beside) mine = column;
        if (t % BESIDE == BESIDE - 1) add_squares(sums.squares[t / BESIDE / 2], mine, t / BESIDE % 2);
      }
    }
  }

  __device__ void multiply(uint4* ring, Sums& sums) const {
    const int steps = (depth + DEEP * 32 - 1) / (DEEP * 32);
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
      if (s < steps) fetch(ring, s);
      end_of_group();
    }
    for (int s = 0; s < steps; s++) {
      wait_for_all_but<STAGES - 2>();
      __syncthreads();
      if (s + STAGES - 1 < steps) fetch(ring, s + STAGES - 1);
      end_of_group();
      add(at(ring, s), sums);
    }
    __syncthreads();
  }

  // A part has the numbers n and n + 1 of the rows m and m + 1.
  __device__ int n_of(int part) const { return first + part / 32 / TILES * 16 + part % 32 / 4 * 2; }
  __device__ int m_of(int part) const { return first_row + part / 32 % TILES * 8 + part % 4 * 2; }

  // What this thread is to add to, long before it does: that comes from far away.
  __device__ void look_up(uint32_t (&before)[TURNS][2]) const {
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int part = threadIdx.x + i * THREADS, n = n_of(part), m = m_of(part);
      const T* from = around.to + static_cast<size_t>(m) * layer.width + n;
      const bool wanted = part < STORED && n < layer.width;
      if (wanted && m < rows) before[i][0] = *reinterpret_cast<const uint32_t*>(from);
      if (wanted && m + 1 < rows) before[i][1] = *reinterpret_cast<const uint32_t*>(from + layer.width);
    }
  }

  __device__ void put(float4* shared, const Sums& sums) const {
#pragma unroll
    for (int i = 0; i < WIDE; i++)
#pragma unroll
      for (int t = 0; t < TILES; t++)
        shared[deep * PARTS + ((beside * WIDE + i) * TILES + t) * 32 + lane] = sums.products[i][t];
    if (NORMED && lane / 8 == lane % 4) put_squares(reinterpret_cast<float*>(shared + DEEP * PARTS), sums);
  }

  __device__ void put_squares(float* shared, const Sums& sums) const {
    const int row = lane / 4;
#pragma unroll
    for (int t = 0; t < TILES / BESIDE; t++) {
      const float4& two = sums.squares[t / 2];
      const float even = t % 2 ? two.z : two.x, odd = t % 2 ? two.w : two.y;
      shared[(deep * TILES + t * BESIDE + beside) * 8 + row] = row % 2 ? odd : even;
    }
  }

  // By which a row is multiplied: all parts of a thread are of the same tile.
  __device__ float factor(const float* squares, int row) const {
    float sum = 0.f;
#pragma unroll
    for (int d = 0; d < DEEP; d++) sum += squares[d * TILES * 8 + row];
    return rsqrtf(sum / depth + around.eps);
  }

  __device__ static float4 whole(const float4* shared, int part) {
    float4 sum = shared[part];
#pragma unroll
    for (int d = 1; d < DEEP; d++) {
      const float4 more = shared[d * PARTS + part];
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    return sum;
  }

  __device__ static void finish(float4& sum, const float (&factors)[2], const T* bias, int n) {
    const float left = bias ? static_cast<float>(bias[n]) : 0.f, right = bias ? static_cast<float>(bias[n + 1]) : 0.f;
    if (NORMED) sum.x *= factors[0], sum.z *= factors[0], sum.y *= factors[1], sum.w *= factors[1];
    sum.x += left, sum.y += left, sum.z += right, sum.w += right;
  }

  __device__ static float gate(float x, float y) { return x / (1.f + __expf(-x)) * y; }

  __device__ void store_two(int m, int n, float left, float right, uint32_t before) const {
    if (m >= rows) return;
    if constexpr (ADDED) {
      const T* two = reinterpret_cast<const T*>(&before);
      left += static_cast<float>(two[0]), right += static_cast<float>(two[1]);
    }
    alignas(4) const T two[2] = {static_cast<T>(left), static_cast<T>(right)};
    T* to = layer.out + static_cast<size_t>(m) * layer.width + n;
    *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(two);
  }

  __device__ void store(const float4* shared, int part, const float (&factors)[2], const uint32_t (&before)[2]) const {
    const int n = n_of(part), m = m_of(part);
    if (n >= layer.width) return;
    float4 sum = whole(shared, part);
    finish(sum, factors, layer.bias, n);
    if constexpr (GATED) {
      float4 other = whole(shared, part + STORED);
      finish(other, factors, gated.bias, n);
      sum = {gate(sum.x, other.x), gate(sum.y, other.y), gate(sum.z, other.z), gate(sum.w, other.w)};
    }
    store_two(m, n, sum.x, sum.z, before[0]);
    store_two(m + 1, n, sum.y, sum.w, before[1]);
  }

  __device__ void store_all(float4* shared, const Sums& sums, const uint32_t (&before)[TURNS][2]) const {
    put(shared, sums);
    __syncthreads();
    float factors[2] = {};
    if constexpr (NORMED) {
      const float* squares = reinterpret_cast<const float*>(shared + DEEP * PARTS);
      const int row = m_of(threadIdx.x) - first_row;
      factors[0] = factor(squares, row), factors[1] = factor(squares, row + 1);
    }
#pragma unroll(ADDED ? TURNS : 1)  // what was looked up stays in registers
    for (int i = 0; i < TURNS; i++) {
      const int part = threadIdx.x + i * THREADS;
      if (part < STORED) store(shared, part, factors, before[i]);
    }
  }

  __device__ void run(uint4* ring) const {
    Sums sums;
    uint32_t before[TURNS][2];
    if constexpr (ADDED) look_up(before);
    multiply(ring, sums);
    store_all(reinterpret_cast<float4*>(ring), sums, before);
  }
};

// Blocks along x are parts of the first layer, then of the next, or of both where one is the other's gate; those along y
// are rows of x.
template <typename T, int TILES, int WIDE, int BESIDE, int STAGES, bool NORMED, bool GATED, bool ADDED, int LAYERS>
__device__ void product(const T* x, int rows, int depth, const Layer<T> (&layers)[LAYERS], const Around<T>& around) {
  using Block = Product<T, TILES, WIDE, BESIDE, STAGES, NORMED, GATED, ADDED>;
  int part = blockIdx.x;
  Layer<T> layer = layers[0];
#pragma unroll
  for (int i = 1; i < (GATED ? 1 : LAYERS); i++) {
    const int parts = (layer.width + Block::WIDTH - 1) / Block::WIDTH;
    if (part >= parts) part -= parts, layer = layers[i];
  }
  RING(ring);
  const int first_row = static_cast<int>(blockIdx.y) * TILES * 8;
  Block{x, rows, depth, first_row, part * Block::WIDTH, layer, layers[LAYERS - 1], around}.run(ring);
}

// All but the last of an array's sizes, multiplied.
template <typename Sizes>
__device__ int rows_of(const Sizes& sizes, int count) {
  int rows = 1;
  for (int i = 0; i < count - 1; i++) rows *= sizes[i];
  return rows;
}

}  // namespace mlxrpc
