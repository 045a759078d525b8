// Functions compiled for several instruction sets, the best one chosen when the program starts.
#pragma once

#include <cstdlib>  // defines __GLIBC__, on which the function multiversioning below depends

// The thread sanitizer is not ready yet when the choice is made.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__has_attribute) && \
    !defined(__SANITIZE_THREAD__)
#if __has_attribute(target_clones)
#define HETMERGE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef HETMERGE_CLONES
#define HETMERGE_CLONES
#endif

#if defined(__GNUC__)
#define HETMERGE_INLINE inline __attribute__((always_inline))
#else
#define HETMERGE_INLINE inline
#endif
