#pragma once

#include <pybind11/pybind11.h>

namespace pyrerank::cpu
{

// Adds the kernels to the module as Python functions over addresses and sizes, which
// pyrerank/kernels/cpu.py takes from tensors that it has checked.
void Bind(pybind11::module_& m);

}  // namespace pyrerank::cpu
