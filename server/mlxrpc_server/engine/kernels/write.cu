// Puts prefilled rows into their pages: a block copies one page of one row and one key-value head.
//
//   keys, values  [rows, HKV, columns, D]: row i is valid up to lengths[i]
//   table, place  as in attend.cu

namespace mlxrpc {

template <typename T, int D, int HKV, int PAGE>
__device__ void write(const T* keys, const T* values, int columns, const uint64_t* table, int width, const int* lengths,
                      const int64_t* place) {
  constexpr int VECTORS = D * sizeof(T) / 16;
  const int row = blockIdx.z, head = blockIdx.y, page = blockIdx.x;
  const int tokens = min(PAGE, lengths[row] - page * PAGE);
  if (tokens <= 0) return;
  const size_t from = ((static_cast<size_t>(row) * HKV + head) * columns + static_cast<size_t>(page) * PAGE) * VECTORS;
  const size_t to = static_cast<size_t>(head) * PAGE * VECTORS;
  const uint64_t address = table[static_cast<size_t>(row) * width + page];
  for (int i = threadIdx.x; i < tokens * VECTORS; i += blockDim.x) {
    reinterpret_cast<uint4*>(address + place[0])[to + i] = reinterpret_cast<const uint4*>(keys)[from + i];
    reinterpret_cast<uint4*>(address + place[1])[to + i] = reinterpret_cast<const uint4*>(values)[from + i];
  }
}

}  // namespace mlxrpc
