#!/usr/bin/env bash
# Builds _score_cuda.so for every architecture it is meant for; says so and ends well without nvcc.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-_score_cuda.so}
if ! command -v nvcc >/dev/null; then
  echo "no nvcc: the CUDA kernel is not compiled here (its emulation is tested all the same)"
  exit 0
fi
for sm in 80 86 89 90 120; do targets+=("-gencode=arch=compute_$sm,code=sm_$sm"); done
nvcc -std=c++17 -O3 -shared -Xcompiler -fPIC,-Wall,-Wextra --Werror all-warnings \
  "${targets[@]}" -gencode=arch=compute_120,code=compute_120 -o "$out" score_cuda.cu
echo "$out: $(wc -c <"$out") bytes for sm_80, 86, 89, 90, 120"
