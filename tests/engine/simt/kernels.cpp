// The kernels of engine/kernels/*.cu as functions of a library, for one block size, a few heads, and two dtypes.
#include "simt.h"
#include "tensor.h"
//
#include "later.cu"
//
#include "attend.cu"
#include "draw.cu"
#include "product.cu"
#include "write.cu"

constexpr int PAGE = 32, STAGES = 3;

template <typename T, int D, int HKV, int G, typename TURN>
void attend(const void* q, const void* k, const void* v, const uint64_t* table, int width, const int* lengths,
            const int* work, const int64_t* place, uint32_t* counters, void* out, float* partials, int items) {
  simt::launch({static_cast<unsigned>(items * HKV), 1, 1}, mlxrpc::Warps<G>::ALL * 32, [=] {
    mlxrpc::attend<T, D, HKV, G, PAGE, STAGES, TURN>(static_cast<const T*>(q), static_cast<const T*>(k),
                                                     static_cast<const T*>(v), table, width, lengths, work, place,
                                                     counters, static_cast<T*>(out), partials);
  });
}

template <typename T, int D, int HKV>
void write(const void* keys, const void* values, int rows, int columns, const uint64_t* table, int width,
           const int* lengths, const int64_t* place) {
  simt::launch({static_cast<unsigned>((columns + PAGE - 1) / PAGE), HKV, static_cast<unsigned>(rows)}, 128, [=] {
    mlxrpc::write<T, D, HKV, PAGE>(static_cast<const T*>(keys), static_cast<const T*>(values), columns, table, width,
                                   lengths, place);
  });
}

template <typename T>
void draw(const void* logits, int rows, int width, const uint32_t* positions, const float* numbers,
          const uint32_t* settings, uint32_t* tokens, int threads) {
  simt::launch({static_cast<unsigned>(rows), 1, 1}, threads, [=] {
    mlxrpc::draw<T>(static_cast<const T*>(logits), width, positions, numbers, settings, tokens);
  });
}

template <int TILES, int WIDE, int BESIDE, int STAGES, bool NORMED, bool GATED, bool ADDED, int LAYERS>
void product(const void* x, int rows, int depth, const uint64_t* arrays, const int* widths, int blocks,
             const void* norm, const void* to) {
  mlxrpc::Layer<bfloat> layers[LAYERS];
  for (int i = 0; i < LAYERS; i++)
    layers[i] = {reinterpret_cast<const bfloat*>(arrays[3 * i]), reinterpret_cast<const bfloat*>(arrays[3 * i + 1]),
                 reinterpret_cast<bfloat*>(arrays[3 * i + 2]), widths[i]};
  const mlxrpc::Around<bfloat> around = {static_cast<const bfloat*>(norm), 1e-5f, static_cast<const bfloat*>(to)};
  const unsigned above = (rows + 8 * TILES - 1) / (8 * TILES);
  simt::launch({static_cast<unsigned>(blocks), above, 1}, 256, [=] {
    mlxrpc::product<bfloat, TILES, WIDE, BESIDE, STAGES, NORMED, GATED, ADDED>(static_cast<const bfloat*>(x), rows,
                                                                               depth, layers, around);
  });
}

#define ATTEND(name, T, D, HKV, G, ...)                                                                               \
  extern "C" void attend_##name(const void* q, const void* k, const void* v, const uint64_t* table, int width,        \
                                const int* lengths, const int* work, const int64_t* place, uint32_t* counters,        \
                                void* out, float* partials, int items) {                                              \
    attend<T, D, HKV, G, mlxrpc::__VA_ARGS__>(q, k, v, table, width, lengths, work, place, counters, out, partials,   \
                                              items);                                                                 \
  }

// Each with a turn of its own too: every kind of it, and heads that turn as a whole or in part.
#define ATTENTION(name, T, D, HKV, G, ...)                                                                            \
  ATTEND(name, T, D, HKV, G, Still)                                                                                   \
  ATTEND(name##_turned, T, D, HKV, G, Turn<T, D, __VA_ARGS__>)                                                        \
  extern "C" void write_##name(const void* keys, const void* values, int rows, int columns, const uint64_t* table,    \
                               int width, const int* lengths, const int64_t* place) {                                 \
    write<T, D, HKV>(keys, values, rows, columns, table, width, lengths, place);                                      \
  }

ATTENTION(f32_64_2_2, float, 64, 2, 2, 64, false, true, true)
ATTENTION(f32_80_1_7, float, 80, 1, 7, 26, true, false, false)
ATTENTION(f32_256_1_9, float, 256, 1, 9, 128, false, true, false)
ATTENTION(bf16_96_2_1, bfloat, 96, 2, 1, 96, true, false, true)
ATTENTION(bf16_128_2_4, bfloat, 128, 2, 4, 128, false, true, true)

extern "C" void draw_f32(const void* logits, int rows, int width, const uint32_t* positions, const float* numbers,
                         const uint32_t* settings, uint32_t* tokens, int threads) {
  draw<float>(logits, rows, width, positions, numbers, settings, tokens, threads);
}
extern "C" void draw_bf16(const void* logits, int rows, int width, const uint32_t* positions, const float* numbers,
                          const uint32_t* settings, uint32_t* tokens, int threads) {
  draw<bfloat>(logits, rows, width, positions, numbers, settings, tokens, threads);
}

#define PRODUCT(name, TILES, WIDE, BESIDE, STAGES, NORMED, GATED, ADDED, LAYERS)                                    \
  extern "C" void product_##TILES##_##WIDE##_##BESIDE##_##STAGES##_##name(                                          \
      const void* x, int rows, int depth, const uint64_t* arrays, const int* widths, int blocks, const void* norm,  \
      const void* to) {                                                                                             \
    product<TILES, WIDE, BESIDE, STAGES, NORMED, GATED, ADDED, LAYERS>(x, rows, depth, arrays, widths, blocks,      \
                                                                       norm, to);                                   \
  }
#define PRODUCTS(TILES, WIDE, BESIDE, STAGES)                         \
  PRODUCT(plain, TILES, WIDE, BESIDE, STAGES, false, false, false, 3) \
  PRODUCT(normed, TILES, WIDE, BESIDE, STAGES, true, false, false, 3) \
  PRODUCT(added, TILES, WIDE, BESIDE, STAGES, false, false, true, 1)
#define GATED_PRODUCTS(TILES, WIDE, BESIDE, STAGES)                   \
  PRODUCT(gated, TILES, WIDE, BESIDE, STAGES, false, true, false, 2)  \
  PRODUCT(gated_normed, TILES, WIDE, BESIDE, STAGES, true, true, false, 2)

PRODUCTS(2, 1, 1, 8)
PRODUCTS(2, 2, 2, 8)
PRODUCTS(8, 1, 1, 5)
PRODUCTS(8, 1, 2, 8)
PRODUCTS(8, 4, 2, 4)
GATED_PRODUCTS(2, 2, 2, 8)
GATED_PRODUCTS(8, 1, 2, 8)
GATED_PRODUCTS(8, 4, 2, 4)
