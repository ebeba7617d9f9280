// Runs a CUDA kernel's text on a CPU, for its logic alone: the threads of one block at a time, each a context of its own
// that gives way where it waits for others. A warp's exchange and a block's barrier are all that it waits for.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

using std::ceil;
using std::max;
using std::min;

#define __device__
#define __shared__ static
// Shared memory whose size is told at the launch.
#define RING(name) static uint4 name[1 << 14]

struct uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// bfloat16 as the upper half of a float, rounded to even.
struct bfloat {
  uint16_t bits;
  bfloat() = default;
  explicit bfloat(float number) {
    uint32_t whole;
    std::memcpy(&whole, &number, 4);
    bits = static_cast<uint16_t>((whole + 0x7fff + ((whole >> 16) & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t whole = static_cast<uint32_t>(bits) << 16;
    float number;
    std::memcpy(&number, &whole, 4);
    return number;
  }
};

namespace simt {

constexpr size_t STACK = 128 * 1024;

struct Barrier {
  int arrived = 0, round = 0;
};

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(STACK);
  Index index;
  bool ended = false;
};

inline std::vector<Thread> threads;
inline std::vector<Barrier> warps;
inline std::vector<uint32_t> exchanged;
inline Barrier whole;
inline ucontext_t scheduler;
inline int now;
inline Index block, block_size, grid;
inline std::function<void()> body;

inline int alive(int from, int to) {
  int count = 0;
  for (int t = from; t < to; t++) count += !threads[t].ended;
  return count;
}

inline void give_way() { swapcontext(&threads[now].context, &scheduler); }

// Those that have ended are not waited for.
inline void wait(Barrier& barrier, int from, int to) {
  const int round = barrier.round;
  barrier.arrived++;
  while (barrier.round == round) {
    if (barrier.arrived >= alive(from, to)) {
      barrier.arrived = 0;
      barrier.round++;
      return;
    }
    give_way();
  }
}

inline void wait_for_warp() {
  const int first = now / 32 * 32;
  wait(warps[now / 32], first, min<int>(first + 32, threads.size()));
}

template <typename T>
T exchange(T mine, int from) {
  static_assert(sizeof(T) == 4);
  std::memcpy(&exchanged[now], &mine, 4);
  wait_for_warp();
  T theirs;
  std::memcpy(&theirs, &exchanged[from], 4);
  wait_for_warp();
  return theirs;
}

inline void run_thread() {
  body();
  threads[now].ended = true;
  give_way();
}

inline void run_block(int count) {
  whole = {};
  warps.assign((count + 31) / 32, {});
  exchanged.assign(count, 0);
  for (int t = 0; t < count; t++) {
    Thread& thread = threads[t];
    thread.ended = false;
    thread.index = {static_cast<unsigned>(t), 0, 0};
    getcontext(&thread.context);
    thread.context.uc_stack = {thread.stack.data(), 0, STACK};
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, run_thread, 0);
  }
  while (alive(0, count))
    for (now = 0; now < count; now++)
      if (!threads[now].ended) swapcontext(&scheduler, &threads[now].context);
}

inline void launch(Index blocks, int count, std::function<void()> kernel) {
  body = std::move(kernel);
  threads = std::vector<Thread>(count);
  block_size = {static_cast<unsigned>(count), 1, 1};
  grid = blocks;
  for (block.z = 0; block.z < blocks.z; block.z++)
    for (block.y = 0; block.y < blocks.y; block.y++)
      for (block.x = 0; block.x < blocks.x; block.x++) run_block(count);
}

}  // namespace simt

#define threadIdx (simt::threads[simt::now].index)
#define blockIdx (simt::block)
#define blockDim (simt::block_size)
#define gridDim (simt::grid)

inline void __syncthreads() { simt::wait(simt::whole, 0, simt::threads.size()); }
inline void __threadfence() {}
template <typename T>
T __shfl_xor_sync(unsigned, T mine, int apart) {
  return simt::exchange(mine, simt::now ^ apart);
}
template <typename T>
T __shfl_up_sync(unsigned, T mine, int apart) {
  return simt::exchange(mine, simt::now % 32 >= apart ? simt::now - apart : simt::now);
}
template <typename T>
T atomicAdd(T* at, T more) {
  const T before = *at;
  *at += more;
  return before;
}
template <typename T>
T atomicMin(T* at, T other) {
  const T before = *at;
  *at = min(before, other);
  return before;
}
template <typename T>
T atomicMax(T* at, T other) {
  const T before = *at;
  *at = max(before, other);
  return before;
}
inline float __ldcg(const float* from) { return *from; }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline int __clz(uint32_t bits) { return bits ? __builtin_clz(bits) : 32; }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
