// Where many tensors lie and what they are, asked in one call: a step asks it of all of its
// tensors, and a Python call each for address, size, dtype and layout would take longer than the
// step of small ones. The twin of `_look_one_by_one` in step/look.py.
#include "look.h"

#include <cstdint>

namespace adaptiverl {
namespace {

// DLPack's C exchange API, version 1, as https://github.com/dmlc/dlpack has it: of what torch gives
// away of a tensor in C, all that is stable.
struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};

struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct DLPackExchangeAPI {
  struct {
    uint32_t major, minor;
  } version;
  void* prev_api;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  int (*dltensor_from_py_object_no_sync)(void* object, DLTensor* out);
};

struct Kind {
  int64_t numel;
  int32_t dtype;
  int16_t device;
  int16_t contiguous;
};

Kind kind_of(const DLTensor& tensor) {
  int64_t numel = 1;
  bool contiguous = true;
  for (int32_t dim = tensor.ndim - 1; dim >= 0; --dim) {
    const int64_t size = tensor.shape[dim];
    if (size != 1 && tensor.strides != nullptr && tensor.strides[dim] != numel) contiguous = false;
    numel *= size;
  }
  const DLDataType& type = tensor.dtype;
  return {numel, type.code | type.bits << 8 | type.lanes << 16,
          static_cast<int16_t>(tensor.device.device_type << 8 | tensor.device.device_id),
          contiguous || numel == 0};
}

bool look_at(const DLPackExchangeAPI& api, PyObject* tensors, int64_t* addresses, Kind* kinds) {
  for (Py_ssize_t i = 0; i < PyList_Size(tensors); ++i) {
    DLTensor tensor;
    if (api.dltensor_from_py_object_no_sync(PyList_GetItem(tensors, i), &tensor) != 0) return false;
    addresses[i] =
        reinterpret_cast<int64_t>(tensor.data) + static_cast<int64_t>(tensor.byte_offset);
    kinds[i] = kind_of(tensor);
  }
  return true;
}

}  // namespace

PyObject* look(PyObject*, PyObject* arguments) {
  PyObject *capsule = nullptr, *tensors = nullptr;
  if (!PyArg_ParseTuple(arguments, "OO", &capsule, &tensors)) return nullptr;
  const auto* api =
      static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  if (api == nullptr) return nullptr;
  if (api->version.major != 1 || api->dltensor_from_py_object_no_sync == nullptr) {
    PyErr_SetString(PyExc_NotImplementedError, "this torch has another exchange API");
    return nullptr;
  }
  const Py_ssize_t count = PyList_Size(tensors);
  if (count < 0) return nullptr;
  PyObject* addresses = PyBytes_FromStringAndSize(nullptr, count * sizeof(int64_t));
  PyObject* kinds = PyBytes_FromStringAndSize(nullptr, count * sizeof(Kind));
  PyObject* found = nullptr;
  if (addresses != nullptr && kinds != nullptr &&
      look_at(*api, tensors, reinterpret_cast<int64_t*>(PyBytes_AsString(addresses)),
              reinterpret_cast<Kind*>(PyBytes_AsString(kinds)))) {
    found = PyTuple_Pack(2, addresses, kinds);
  }
  Py_XDECREF(addresses);
  Py_XDECREF(kinds);
  return found;
}

}  // namespace adaptiverl
