// Products of few rows with weights as they lie in a model, several weights with one input in one launch:
// out = x W^T + bias, in float32 on the tensor cores.
//
// A block takes the numbers that TALL rows of one weight give with up to 8 * TILES rows of x. Its warps share that work by
// depth, which they add up at the end, and BESIDE of them stand side by side. Weights are the first operand, since they
// come in sixteens, and x in eights. A lane fetches sixteen bytes at a time, eight numbers of a row: in which order they
// are multiplied is nobody's concern, so they take the places that the tensor cores want of this lane. Likewise a lane's
// two rows of the weight are neighbours, so that it writes two numbers at once.

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

template <typename T, int TILES, int WIDE, int BESIDE, int STAGES>
struct Product {
  static constexpr int WARPS = 8, DEEP = WARPS / BESIDE, TALL = 16 * WIDE * BESIDE;
  static constexpr int LOADS = 2 * WIDE * BESIDE + TILES;  // of a warp's lanes, for 32 numbers of depth
  static constexpr int STAGE = DEEP * LOADS * 32;

  const T* x;
  int rows, depth, first_row, first;
  Layer<T> layer;
  int lane = threadIdx.x % 32, beside = threadIdx.x / 32 % BESIDE, deep = threadIdx.x / 32 / BESIDE;

  __device__ uint4* at(uint4* ring, int step) const { return ring + step % STAGES * STAGE + deep * LOADS * 32 + lane; }

  __device__ void fetch(uint4* ring, int step) const {
    const int from = (step * DEEP + deep) * 32 + lane % 4 * 8;
    const bool within = from < depth;
    uint4* to = at(ring, step);
#pragma unroll
    for (int i = 0; i < 2 * WIDE; i++) {
      const int row = first + (beside * WIDE + i / 2) * 16 + lane / 4 * 2 + i % 2;
      const bool wanted = within && row < layer.width;
      const size_t place = wanted ? static_cast<size_t>(row) * depth + from : 0;
      copy_later(to + (beside * 2 * WIDE + i) * 32, reinterpret_cast<const uint4*>(layer.weight + place), wanted);
    }
#pragma unroll
    for (int t = 0; t < (TILES + BESIDE - 1) / BESIDE; t++) {
      const int tile = t * BESIDE + beside, row = first_row + tile * 8 + lane / 4;
      const bool wanted = within && row < rows;
      const size_t place = wanted ? static_cast<size_t>(row) * depth + from : 0;
      if (tile < TILES)
        copy_later(to + (BESIDE * 2 * WIDE + tile) * 32, reinterpret_cast<const uint4*>(x + place), wanted);
    }
  }

  __device__ void add(const uint4* from, float4 (&sums)[WIDE][TILES]) const {
    const T* type = nullptr;
    uint4 even[WIDE], odd[WIDE];
#pragma unroll
    for (int i = 0; i < WIDE; i++) {
      even[i] = from[(beside * 2 * WIDE + 2 * i) * 32];
      odd[i] = from[(beside * 2 * WIDE + 2 * i + 1) * 32];
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      const uint4 column = from[(BESIDE * 2 * WIDE + t) * 32];
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        multiply_add(type, sums[i][t], make_uint4(even[i].x, odd[i].x, even[i].y, odd[i].y), column.x, column.y);
        multiply_add(type, sums[i][t], make_uint4(even[i].z, odd[i].z, even[i].w, odd[i].w), column.z, column.w);
      }
    }
  }

  __device__ void multiply(uint4* ring, float4 (&sums)[WIDE][TILES]) const {
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

  __device__ void store(const float4& sum, int tile, int t, int lane) const {
    const int n = first + tile * 16 + lane / 4 * 2, m = first_row + t * 8 + lane % 4 * 2;
    if (n >= layer.width) return;
    const float left = layer.bias ? static_cast<float>(layer.bias[n]) : 0.f;
    const float right = layer.bias ? static_cast<float>(layer.bias[n + 1]) : 0.f;
    if (m < rows) store_two(m, n, sum.x + left, sum.z + right);
    if (m + 1 < rows) store_two(m + 1, n, sum.y + left, sum.w + right);
  }

  __device__ void store_two(int m, int n, float left, float right) const {
    alignas(4) const T two[2] = {static_cast<T>(left), static_cast<T>(right)};
    T* to = layer.out + static_cast<size_t>(m) * layer.width + n;
    *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(two);
  }

  __device__ void store_all(float4* shared, const float4 (&sums)[WIDE][TILES]) const {
    constexpr int PARTS = BESIDE * WIDE * TILES * 32;
#pragma unroll
    for (int i = 0; i < WIDE; i++)
#pragma unroll
      for (int t = 0; t < TILES; t++) shared[deep * PARTS + ((beside * WIDE + i) * TILES + t) * 32 + lane] = sums[i][t];
    __syncthreads();
    for (int part = threadIdx.x; part < PARTS; part += WARPS * 32) {
      float4 sum = shared[part];
#pragma unroll
      for (int d = 1; d < DEEP; d++) {
        const float4 more = shared[d * PARTS + part];
        sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
      }
      store(sum, part / 32 / TILES, part / 32 % TILES, part % 32);
    }
  }
};

// Blocks along x are parts of the first layer, then of the next; those along y are rows of x.
template <typename T, int TILES, int WIDE, int BESIDE, int STAGES, int LAYERS>
__device__ void product(const T* x, int rows, int depth, const Layer<T> (&layers)[LAYERS]) {
  using Block = Product<T, TILES, WIDE, BESIDE, STAGES>;
  int part = blockIdx.x;
  Layer<T> layer = layers[0];
#pragma unroll
  for (int i = 1; i < LAYERS; i++) {
    const int parts = (layer.width + Block::TALL - 1) / Block::TALL;
    if (part >= parts) part -= parts, layer = layers[i];
  }
  const Block block = {x, rows, depth, static_cast<int>(blockIdx.y) * TILES * 8, part * Block::TALL, layer};
  RING(ring);
  float4 sums[WIDE][TILES] = {};
  block.multiply(ring, sums);
  block.store_all(reinterpret_cast<float4*>(ring), sums);
}

// All but the last of an array's sizes, multiplied.
template <typename Sizes>
__device__ int rows_of(const Sizes& sizes, int count) {
  int rows = 1;
  for (int i = 0; i < count - 1; i++) rows *= sizes[i];
  return rows;
}

}  // namespace mlxrpc
