// Where many tensors lie and what they are, asked in one call: a step asks it of all of its
// tensors, and a Python call each for address, size, dtype and layout would take longer than the
// step of small ones. The twins of `_look_one_by_one` in step/look.py and of `Fingerprint.of`.
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

// Fills in what a tensor is; false, with a Python error, if it is none or lies nowhere.
bool look_at(const DLPackExchangeAPI& api, PyObject* object, int64_t* address, Kind* kind) {
  DLTensor tensor;
  if (api.dltensor_from_py_object_no_sync(object, &tensor) != 0) return false;
  *address = reinterpret_cast<int64_t>(tensor.data) + static_cast<int64_t>(tensor.byte_offset);
  *kind = kind_of(tensor);
  return true;
}

const DLPackExchangeAPI* api_in(PyObject* capsule) {
  const auto* api =
      static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  if (api == nullptr) return nullptr;
  if (api->version.major != 1 || api->dltensor_from_py_object_no_sync == nullptr) {
    PyErr_SetString(PyExc_NotImplementedError, "this torch has another exchange API");
    return nullptr;
  }
  return api;
}

// An array that Python has as bytes.
template <typename T>
struct Bytes {
  explicit Bytes(Py_ssize_t count)
      : object(PyBytes_FromStringAndSize(nullptr, count * sizeof(T))),
        data(object == nullptr ? nullptr : reinterpret_cast<T*>(PyBytes_AsString(object))) {}
  ~Bytes() { Py_XDECREF(object); }
  Bytes(const Bytes&) = delete;

  PyObject* object;
  T* data;
};

struct Looks {
  explicit Looks(Py_ssize_t count) : addresses(count), kinds(count) {}
  bool are_there() const { return addresses.data != nullptr && kinds.data != nullptr; }
  bool look(const DLPackExchangeAPI& api, PyObject* object, Py_ssize_t i) {
    return look_at(api, object, addresses.data + i, kinds.data + i);
  }

  Bytes<int64_t> addresses;
  Bytes<Kind> kinds;
};

// What a walk asks Python for: none of it is made anew for each tensor.
struct Names {
  PyObject* grad = PyUnicode_InternFromString("grad");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  PyObject* step = PyUnicode_InternFromString("step");
  PyObject* product = PyUnicode_InternFromString("mu_product");
  PyObject* buffer = PyUnicode_InternFromString("buffer");
};

enum class Answer { kSeen, kUnusual, kError };

bool is_one_of(PyObject* types, PyObject* object) {
  for (Py_ssize_t i = 0; i < PyTuple_Size(types); ++i) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(object)) == PyTuple_GetItem(types, i)) return true;
  }
  return false;
}

// A parameter's gradient, if it has one that lies as it says.
Answer look_at_gradient(const DLPackExchangeAPI& api, const Names& names, PyObject* types,
                        PyObject* param, Looks& gradients, Py_ssize_t i) {
  PyObject* grad = PyObject_GetAttr(param, names.grad);
  if (grad == nullptr) return Answer::kError;
  Answer answer = Answer::kUnusual;
  if (is_one_of(types, grad)) {
    PyObject* negated = PyObject_CallMethodObjArgs(grad, names.is_neg, nullptr);
    if (negated == nullptr || !gradients.look(api, grad, i)) {
      answer = Answer::kError;
    } else if (negated == Py_False) {
      answer = Answer::kSeen;
    }
    Py_XDECREF(negated);
  }
  Py_DECREF(grad);
  return answer;
}

// A slot; one that is kept in blocks lies in its buffer (kernels/block_tensor.py).
Answer look_at_slot(const DLPackExchangeAPI& api, const Names& names, PyObject* types,
                    PyObject* slot, Looks& found, Py_ssize_t place) {
  if (slot == nullptr) return Answer::kUnusual;
  if (is_one_of(types, slot)) {
    return found.look(api, slot, place) ? Answer::kSeen : Answer::kError;
  }
  PyObject* buffer = PyObject_GetAttr(slot, names.buffer);
  if (buffer == nullptr) {
    PyErr_Clear();
    return Answer::kUnusual;
  }
  const bool seen = found.look(api, buffer, place);
  Py_DECREF(buffer);
  return seen ? Answer::kSeen : Answer::kError;
}

// The slots of a parameter's state, and where its count lies.
Answer look_at_state(const DLPackExchangeAPI& api, const Names& names, PyObject* types,
                     PyObject* state, PyObject* slots, Looks& found, int64_t* step, Py_ssize_t i) {
  if (!PyDict_Check(state) || PyDict_GetItem(state, names.product) != nullptr) {
    return Answer::kUnusual;
  }
  PyObject* count = PyDict_GetItem(state, names.step);
  if (count == nullptr) return Answer::kUnusual;
  Kind kind;  // that of the last step, whose address it is, or it is taken in
  if (!look_at(api, count, step, &kind)) return Answer::kError;
  const Py_ssize_t each = PyTuple_Size(slots);
  for (Py_ssize_t k = 0; k < each; ++k) {
    PyObject* slot = PyDict_GetItem(state, PyTuple_GetItem(slots, k));
    const Answer answer = look_at_slot(api, names, types, slot, found, i * each + k);
    if (answer != Answer::kSeen) return answer;
  }
  return Answer::kSeen;
}

}  // namespace

PyObject* look(PyObject*, PyObject* arguments) {
  PyObject *capsule = nullptr, *tensors = nullptr;
  if (!PyArg_ParseTuple(arguments, "OO!", &capsule, &PyList_Type, &tensors)) return nullptr;
  const DLPackExchangeAPI* api = api_in(capsule);
  if (api == nullptr) return nullptr;
  const Py_ssize_t count = PyList_Size(tensors);
  Looks found(count);
  if (!found.are_there()) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!found.look(*api, PyList_GetItem(tensors, i), i)) return nullptr;
  }
  return PyTuple_Pack(2, found.addresses.object, found.kinds.object);
}

PyObject* walk(PyObject*, PyObject* arguments) {
  PyObject *capsule = nullptr, *params = nullptr, *states = nullptr;
  PyObject *slots = nullptr, *types = nullptr;
  if (!PyArg_ParseTuple(arguments, "OO!O!O!O!", &capsule, &PyList_Type, &params, &PyList_Type,
                        &states, &PyTuple_Type, &slots, &PyTuple_Type, &types)) {
    return nullptr;
  }
  const DLPackExchangeAPI* api = api_in(capsule);
  if (api == nullptr) return nullptr;
  static const Names names;
  const Py_ssize_t count = PyList_Size(params);
  if (PyList_Size(states) != count) Py_RETURN_NONE;
  Looks own(count), kept(count * PyTuple_Size(slots)), gradients(count);
  Bytes<int64_t> steps(count);
  if (!own.are_there() || !kept.are_there() || !gradients.are_there() || steps.data == nullptr) {
    return nullptr;
  }
  // Parameter by parameter: of thousands, none stays in the cache until a second pass.
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* param = PyList_GetItem(params, i);
    if (!is_one_of(types, param)) Py_RETURN_NONE;
    Answer answer = own.look(*api, param, i) ? Answer::kSeen : Answer::kError;
    if (answer == Answer::kSeen) {
      answer = look_at_gradient(*api, names, types, param, gradients, i);
    }
    if (answer == Answer::kSeen) {
      answer = look_at_state(*api, names, types, PyList_GetItem(states, i), slots, kept,
                             steps.data + i, i);
    }
    if (answer == Answer::kError) return nullptr;
    if (answer == Answer::kUnusual) Py_RETURN_NONE;
  }
  return PyTuple_Pack(7, own.addresses.object, own.kinds.object, kept.addresses.object,
                      kept.kinds.object, steps.object, gradients.addresses.object,
                      gradients.kinds.object);
}

}  // namespace adaptiverl
