#pragma once

#include <pybind11/pybind11.h>

namespace pyrerank::cpu
{

// Adds the kernels to the module, as Python functions that take addresses and sizes. They trust
// them: pyrerank/kernels/host.py takes them from tensors that it has checked or made itself.
void Bind(pybind11::module_& m);

}  // namespace pyrerank::cpu
