#pragma once

#include <pybind11/pybind11.h>

namespace pyrerank::cpu
{

// Adds the kernels to the module as Python functions over addresses and sizes, which layers.py and
// attention.py take from tensors that they made themselves.
void Bind(pybind11::module_& m);

}  // namespace pyrerank::cpu
