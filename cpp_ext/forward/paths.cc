// The paths of this build, and the choice among them (paths.h).

#include "paths.h"

#include <cstring>
#include <string>

namespace modelsat {
namespace {

const Path* const kPaths[] = {  // best first
#if defined(__x86_64__)
#if !defined(MODELSAT_WITHOUT_AMX)
    &kAmxInt8, &kAmxBf16,
#endif
#if !defined(MODELSAT_WITHOUT_AVX512)
    &kAvx512Vnni,
#endif
#if !defined(MODELSAT_WITHOUT_AVX512_BF16)
    &kAvx512Bf16,
#endif
#if !defined(MODELSAT_WITHOUT_AVX_VNNI)
    &kAvx2Vnni,
#endif
#if !defined(MODELSAT_WITHOUT_AVX2)
    &kAvx2,
#endif
#elif defined(__aarch64__)
#if !defined(MODELSAT_WITHOUT_NEON_I8MM)
    &kNeonI8mm,
#endif
#if !defined(MODELSAT_WITHOUT_NEON_DOT)
    &kNeonDot,
#endif
#endif
    nullptr,
};

}  // namespace

const Path* find_path(const char* name, Number number) {
  for (const Path* path : kPaths)
    if (path && path->number == number && (!name || !std::strcmp(name, path->name)) &&
        path->available())
      return path;
  return nullptr;
}

const char* path_names() {
  static const std::string names = [] {
    std::string list;
    for (const Path* path : kPaths)
      if (path && path->available()) list.append(path->name).append(" ");
    return list + kScalar;
  }();
  return names.c_str();
}

}  // namespace modelsat
