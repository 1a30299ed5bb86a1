// What the module has beside the operators.
#pragma once

#include <Python.h>

namespace adaptiverl {

// look(exchange_api: capsule, tensors: list) -> (addresses: bytes of int64, kinds: bytes)
PyObject* look(PyObject* module, PyObject* arguments);

}  // namespace adaptiverl
