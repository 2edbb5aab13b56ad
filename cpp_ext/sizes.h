// Checks of sizes that callers of the C ABI pass.
#ifndef MODELSAT_SIZES_H
#define MODELSAT_SIZES_H

#include <cstdint>

// Whether an array of a x b x c elements has more bytes than int64_t can count. All are >= 0.
inline bool overflows(int64_t a, int64_t b, int64_t c, int64_t element_bytes) {
  int64_t size;
  return __builtin_mul_overflow(a, b, &size) || __builtin_mul_overflow(size, c, &size) ||
         __builtin_mul_overflow(size, element_bytes, &size);
}

#endif
