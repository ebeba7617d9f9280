// Copies into shared memory that go on while other things are computed.

namespace mlxrpc {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
// Sixteen bytes, or zeros where there is nothing wanted.
__device__ void copy_later(uint4* to, const uint4* from, bool wanted) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}
__device__ void end_of_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS>
__device__ void wait_for_all_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}
#else
__device__ void copy_later(uint4* to, const uint4* from, bool wanted) { *to = wanted ? *from : make_uint4(0, 0, 0, 0); }
__device__ void end_of_group() {}
template <int GROUPS>
__device__ void wait_for_all_but() {}
#endif

}  // namespace mlxrpc
