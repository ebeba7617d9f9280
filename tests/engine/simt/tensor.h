// What the tensor cores add: [16, 16] times [16, 8], spread over a warp's lanes as PTX says it of m16n8k16.
#pragma once
#include "simt.h"

struct float4 {
  float x, y, z, w;
};

namespace simt {

struct Operands {
  uint32_t a[4], b[2];
};

inline std::vector<Operands> operands;

template <typename T>
float number(uint32_t pair, int which) {
  const uint16_t bits = static_cast<uint16_t>(pair >> (16 * which));
  T stored;
  std::memcpy(&stored, &bits, 2);
  return static_cast<float>(stored);
}

// Of the row `high ? group + 8 : group`, with one column.
template <typename T>
float dot(int warp, int group, bool high, int column) {
  float sum = 0.f;
  for (int k = 0; k < 16; k++) {
    const int quad = k % 8 / 2, half = k / 8;
    sum += number<T>(operands[warp + group * 4 + quad].a[2 * half + high], k % 2) *
           number<T>(operands[warp + column * 4 + quad].b[half], k % 2);
  }
  return sum;
}

}  // namespace simt

template <typename T>
void multiply_add(const T*, float4& sum, const uint4& a, uint32_t b0, uint32_t b1) {
  simt::operands.resize(simt::threads.size());
  simt::operands[simt::now] = {{a.x, a.y, a.z, a.w}, {b0, b1}};
  simt::wait_for_warp();
  const int lane = simt::now % 32, warp = simt::now - lane, column = lane % 4 * 2;
  sum.x += simt::dot<T>(warp, lane / 4, false, column), sum.y += simt::dot<T>(warp, lane / 4, false, column + 1);
  sum.z += simt::dot<T>(warp, lane / 4, true, column), sum.w += simt::dot<T>(warp, lane / 4, true, column + 1);
  simt::wait_for_warp();
}

// Two numbers times two others.
template <typename T>
uint32_t multiply_two(const T*, uint32_t a, uint32_t b) {
  const T two[2] = {static_cast<T>(simt::number<T>(a, 0) * simt::number<T>(b, 0)),
                    static_cast<T>(simt::number<T>(a, 1) * simt::number<T>(b, 1))};
  uint32_t product;
  std::memcpy(&product, two, 4);
  return product;
}
