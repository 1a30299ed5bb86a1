// What the module has beside the operators; step/look.py calls it.
#pragma once

#include <Python.h>

namespace adaptiverl {

// look(exchange_api: capsule, tensors: list) -> (addresses: bytes of int64, kinds: bytes)
PyObject* look(PyObject* module, PyObject* arguments);

// walk(exchange_api: capsule, params: list, states: list of dict, slots: tuple of str, types:
// tuple)
// -> addresses and kinds, as `look` gives them, of the parameters, of their slots; addresses of the
// `step` objects; addresses and kinds of the gradients. None where something is unusual: a missing
// gradient or entry, a product in the state, a gradient to be negated, a tensor of another type.
PyObject* walk(PyObject* module, PyObject* arguments);

}  // namespace adaptiverl
