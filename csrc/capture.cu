// How long a CUDA graph can replay, which torch does not tell: a user object that the graph owns is
// destroyed with it.
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <mutex>
#include <unordered_set>

namespace adaptiverl {
namespace {

// Never destroyed: CUDA may end a graph after the process's static objects are gone.
struct Watches {
  std::mutex mutex;
  int64_t last = 0;
  std::unordered_set<int64_t> ended;
};

Watches& watches() {
  static Watches& all = *new Watches();
  return all;
}

// Called by CUDA on a thread of its own choice, where nothing of CUDA may be called.
void CUDART_CB note_end(void* watch) {
  Watches& all = watches();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.ended.insert(reinterpret_cast<intptr_t>(watch));
}

cudaGraph_t graph_captured_on(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  cudaGraph_t graph = nullptr;
#if CUDART_VERSION >= 13000
  const cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, &id, &graph);
#else
  const cudaError_t error = cudaStreamGetCaptureInfo_v2(stream, &status, &id, &graph);
#endif
  STD_TORCH_CHECK(
      error == cudaSuccess && status == cudaStreamCaptureStatusActive,
      "watch_capture needs a stream that is capturing, got one whose capture status is ",
      static_cast<int>(status), " (", cudaGetErrorString(error), ")");
  return graph;
}

// A number to ask `capture_has_ended` with; 0 where CUDA will not say when the graph ends.
int64_t watch_capture(int64_t stream) {
  cudaGraph_t graph = graph_captured_on(reinterpret_cast<cudaStream_t>(stream));
  Watches& all = watches();
  int64_t watch = 0;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    watch = ++all.last;
  }
  cudaUserObject_t object = nullptr;
  void* name = reinterpret_cast<void*>(static_cast<intptr_t>(watch));
  if (cudaUserObjectCreate(&object, name, note_end, 1, cudaUserObjectNoDestructorSync) !=
      cudaSuccess) {
    cudaGetLastError();  // or the next launch would be blamed for it
    return 0;
  }
  // The graph takes over the one reference; what is instantiated from it takes its own.
  if (cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove) != cudaSuccess) {
    cudaUserObjectRelease(object, 1);
    cudaGetLastError();
    return 0;
  }
  return watch;
}

// True once: the watch is forgotten then.
bool capture_has_ended(int64_t watch) {
  Watches& all = watches();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return all.ended.erase(watch) == 1;
}

}  // namespace
}  // namespace adaptiverl

STABLE_TORCH_LIBRARY_FRAGMENT(adaptiverl, m) {
  m.def("watch_capture(int stream) -> int");
  m.def("capture_has_ended(int watch) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(adaptiverl, CompositeExplicitAutograd, m) {
  m.impl("watch_capture", TORCH_BOX(&adaptiverl::watch_capture));
  m.impl("capture_has_ended", TORCH_BOX(&adaptiverl::capture_has_ended));
}
