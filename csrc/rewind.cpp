// The way back to where a search began: memory that is put back, or emptied, in the one step in
// which the law asks for it. The twin of kernels/rewind.py.
#include <cstdint>
#include <cstring>

#include "checks.h"

namespace adaptiverl {
namespace {

const Region* regions_of(const Tensor& regions) {
  constexpr int64_t width = sizeof(Region) / sizeof(int64_t);
  check_dtype(regions, "regions", ScalarType::Long, "int64");
  STD_TORCH_CHECK(regions.dim() == 2 && regions.size(1) == width,
                  "regions must be of shape [regions, ", width, "], got ", regions.numel(),
                  " numbers in ", regions.dim(), " dimensions");
  return static_cast<const Region*>(regions.data_ptr());
}

void rewind_op(Tensor regions_tensor, Tensor state_tensor) {
  const Home home(state_tensor, "state");
  home.check(regions_tensor, "regions");
  const Region* regions = regions_of(regions_tensor);
  const int64_t count = regions_tensor.size(0);
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(regions[i].bytes >= 0, "region ", i, " must not have a negative size, got ",
                    regions[i].bytes);
  }
  if (state_of(state_tensor)->rewind == 0) {
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const Region& region = regions[i];
    if (region.bytes == 0) {
      continue;
    }
    if (region.source == 0) {
      std::memset(at<void>(region.target), 0, region.bytes);
    } else {
      std::memcpy(at<void>(region.target), at<const void>(region.source), region.bytes);
    }
  }
}

}  // namespace
}  // namespace adaptiverl

STABLE_TORCH_LIBRARY_IMPL(adaptiverl, CPU, m) {
  m.impl("rewind_", TORCH_BOX(&adaptiverl::rewind_op));
}
