// The extension module hetmerge._native: one registration per operation.
#include <pybind11/pybind11.h>

namespace hetmerge {

void register_assignment(pybind11::module_& m);
void register_moments(pybind11::module_& m);
void register_project(pybind11::module_& m);
void register_similarity(pybind11::module_& m);
void register_zipping(pybind11::module_& m);

}  // namespace hetmerge

PYBIND11_MODULE(_native, m) {
#ifdef HETMERGE_CUDA
    m.attr("has_cuda") = true;
#else
    m.attr("has_cuda") = false;
#endif
    hetmerge::register_assignment(m);
    hetmerge::register_moments(m);
    hetmerge::register_project(m);
    hetmerge::register_similarity(m);
    hetmerge::register_zipping(m);
}
