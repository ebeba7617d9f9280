// The kernels of engine/kernels/*.metal in the same way: Metal's words mean nothing here, or what CUDA's mean.
#include "simt.h"

#define mlxrpc mlxrpc_metal
#define device
#define thread
#define threadgroup
#define constant

namespace metal {}

using uint = unsigned;
struct uint3 {
  unsigned x, y, z;
};
struct float4 {
  float at[4];
  float4() = default;
  explicit float4(float all) : at{all, all, all, all} {}
  float& operator[](int i) { return at[i]; }
  float operator[](int i) const { return at[i]; }
};
inline float4 each(const float4& a, const float4& b, float (*of)(float, float)) {
  float4 result;
  for (int i = 0; i < 4; i++) result[i] = of(a[i], b[i]);
  return result;
}
inline float4 operator+(const float4& a, const float4& b) {
  return each(a, b, [](float x, float y) { return x + y; });
}
inline float4 operator*(const float4& a, float b) {
  return each(a, float4(b), [](float x, float y) { return x * y; });
}
inline float4 operator*(float a, const float4& b) { return b * a; }
inline float4& operator+=(float4& a, const float4& b) { return a = a + b; }
inline float4& operator*=(float4& a, float b) { return a = a * b; }
inline float dot(const float4& a, const float4& b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
}
inline float simd_shuffle_xor(float mine, int apart) { return __shfl_xor_sync(0u, mine, apart); }
inline float4 simd_shuffle_xor(const float4& mine, int apart) {
  float4 theirs;
  for (int i = 0; i < 4; i++) theirs[i] = __shfl_xor_sync(0u, mine[i], apart);
  return theirs;
}
enum class mem_flags { mem_threadgroup };
inline void threadgroup_barrier(mem_flags) { __syncthreads(); }
template <typename To>
To as_type(int bits) {
  return __int_as_float(bits);
}

#include "attend.metal"
#include "write.metal"

constexpr int PAGE = 32;

template <typename T, int D, int HKV, int G, bool SPLIT>
void attend(const void* q, const void* k, const void* v, void* keys, void* values, const int* table, const int* lengths,
            const int* work, const int* place, void* out, float* partials, int items) {
  static float shared[mlxrpc::Warps<G, D>::SHARED];
  const Index blocks = {static_cast<unsigned>(items * HKV), 1, 1};
  constexpr int THREADS = mlxrpc::Warps<G, D>::ALL * 32;
  simt::launch(blocks, THREADS, [=] {
    mlxrpc::attend<T, D, HKV, G, PAGE, SPLIT>(
        static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), static_cast<T*>(keys),
        static_cast<T*>(values), table, lengths, work, place, static_cast<T*>(out), partials, shared, blockIdx.x,
        threadIdx.x);
  });
  if (SPLIT)
    simt::launch(blocks, THREADS, [=] {
      mlxrpc::combine<T, D, HKV, G>(partials, lengths, work, place, static_cast<T*>(out), blockIdx.x, threadIdx.x,
                                    THREADS);
    });
}

#define ATTENTION(name, T, D, HKV, G)                                                                                  \
  extern "C" void metal_attend_##name(const void* q, const void* k, const void* v, void* keys, void* values,           \
                                      const int* table, const int* lengths, const int* work, const int* place,         \
                                      void* out, float* partials, int items, int split) {                              \
    if (split)                                                                                                         \
      attend<T, D, HKV, G, true>(q, k, v, keys, values, table, lengths, work, place, out, partials, items);            \
    else                                                                                                               \
      attend<T, D, HKV, G, false>(q, k, v, keys, values, table, lengths, work, place, out, partials, items);           \
  }                                                                                                                    \
  extern "C" void metal_write_##name(const void* keys, const void* values, int rows, int columns, void* key_pages,     \
                                     void* value_pages, const int* table, const int* lengths, const int* place) {      \
    simt::launch({static_cast<unsigned>((columns + PAGE - 1) / PAGE), HKV, static_cast<unsigned>(rows)}, 128, [=] {    \
      mlxrpc::write<T, D, HKV, PAGE>(static_cast<const T*>(keys), static_cast<const T*>(values), columns,              \
                                     static_cast<T*>(key_pages), static_cast<T*>(value_pages), table, lengths, place,  \
                                     uint3{blockIdx.x, blockIdx.y, blockIdx.z}, threadIdx.x, 128);                     \
    });                                                                                                                \
  }

ATTENTION(f32_64_2_2, float, 64, 2, 2)
ATTENTION(f32_80_1_7, float, 80, 1, 7)
ATTENTION(f32_256_1_9, float, 256, 1, 9)
ATTENTION(bf16_96_2_1, bfloat, 96, 2, 1)
ATTENTION(bf16_128_2_4, bfloat, 128, 2, 4)
