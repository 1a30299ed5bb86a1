// What `import adaptiverl._C` finds: one constant and two functions. Loading the file is what
// registers the operators.
#include "look.h"

extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyMethodDef functions[] = {{"look", adaptiverl::look, METH_VARARGS, nullptr},
                                    {"walk", adaptiverl::walk, METH_VARARGS, nullptr},
                                    {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, functions};
  PyObject* module = PyModule_Create(&definition);
  // What controller.cu was compiled for, as in "75 80 90"; empty where it was not.
  if (module != nullptr &&
      PyModule_AddStringConstant(module, "cuda_architectures", CUDA_ARCHITECTURES) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
