// The twin of write.cu: a threadgroup copies one page of one row and one key-value head.

namespace mlxrpc {

using namespace metal;

template <typename T, int D, int HKV, int PAGE, typename Table, typename Lengths, typename Place>
void write(const device T* keys, const device T* values, int columns, device T* key_pages, device T* value_pages,
           Table table, Lengths lengths, Place place, uint3 block, uint thread_index, uint threads) {
  const int row = block.z, head = block.y, page = block.x;
  const int tokens = min(PAGE, lengths[row] - page * PAGE);
  if (tokens <= 0) return;
  const size_t from = ((static_cast<size_t>(row) * HKV + head) * columns + static_cast<size_t>(page) * PAGE) * D;
  const size_t number = table[static_cast<size_t>(row) * place[2] + page];
  const size_t to = (number * HKV + head) * PAGE * D;
  for (int i = thread_index; i < tokens * D; i += threads) {
    key_pages[to + i] = keys[from + i];
    value_pages[to + i] = values[from + i];
  }
}

}  // namespace mlxrpc
