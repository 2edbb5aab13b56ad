#!/usr/bin/env bash
# Build _score_cuda.so for the supported GPU architectures that this nvcc knows; print those that it
# does not. Without nvcc, print so and succeed.
# Usage: build_cuda.sh [FILE [ARCHITECTURE...]], such as build_cuda.sh _score_cuda.so 89 90
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-_score_cuda.so}
if ! command -v nvcc >/dev/null; then
  echo "no nvcc: skipping the CUDA kernel (tests emulate it on the CPU)"
  exit 0
fi
wanted=("${@:2}")
[ $# -gt 1 ] || wanted=(80 86 89 90 120)
known=$(nvcc --list-gpu-code)
targets=() built=() newest=
for sm in "${wanted[@]}"; do
  if grep -qx "sm_$sm" <<<"$known"; then
    targets+=("-gencode=arch=compute_$sm,code=sm_$sm") built+=("$sm") newest=$sm
  else
    echo "this nvcc does not know sm_$sm: left out"
  fi
done
[ -n "$newest" ] || { echo "this nvcc knows none of: ${wanted[*]}"; exit 1; }
# The newest also as PTX, which the driver compiles for GPUs that are newer still.
nvcc -std=c++17 -O3 -shared -Xcompiler -fPIC,-Wall,-Wextra --Werror all-warnings \
  "${targets[@]}" "-gencode=arch=compute_$newest,code=compute_$newest" -o "$out" score_cuda.cu
echo "$out: $(wc -c <"$out") bytes for sm ${built[*]}"
