#!/usr/bin/env bash
# Builds, checks and measures the CUDA backend on this machine's GPU, and leaves the figures in a folder.
#
#   scripts/gpu-check.sh [FOLDER]          (default: gpu-check)
#
# Needs nvcc (on the PATH, or CUDACXX), cmake, g++ and GoogleTest (or GTest_ROOT). Used where they are there:
# compute-sanitizer; python3 with torch, for the peers; node with the npm packages installed, for a cluster. What is left
# out is named. Writes gpu.json, gpu-timeline.svg and log. About five minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-gpu-check}
mkdir -p "$folder"
exec > >(tee "$folder/log") 2>&1

failed=()
# step NAME SECONDS COMMAND...: runs it within that time; a failure is kept for the end.
step() {
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  echo "== $name"
  if timeout "$limit" "$@"; then echo "== $name: ok, $((SECONDS - start)) s"; else failed+=("$name"); echo "== $name: FAILED"; fi
}
without() { echo "== left out: $1"; }

nvidia-smi || { echo "gpu-check: no NVIDIA device here" >&2; exit 1; }
build=native/build-gpu
architecture=${SWITCHYARD_CUDA_ARCHITECTURE:-native}
step configure 60 cmake -S native -B $build -DSWITCHYARD_CUDA=ON -DSWITCHYARD_TESTS=ON -DSWITCHYARD_GPU_BENCH=ON \
  -DCMAKE_CUDA_ARCHITECTURES="$architecture"
step build 300 cmake --build $build --parallel "$(nproc)" --target switchyard_cuda experts_cuda experts_cuda_plan gpu_bench
step "host tests" 60 $build/test/experts_cuda_plan --gtest_brief=1
step "device tests" 180 $build/test/experts_cuda
if command -v compute-sanitizer >/dev/null; then
  step compute-sanitizer 180 compute-sanitizer --error-exitcode 1 $build/test/experts_cuda \
    --gtest_filter='*Agree*:*Registered*:*Infinity*'
else
  without "compute-sanitizer, not on the PATH"
fi
step benchmark 180 $build/gpu_bench --json "$folder/gpu.json" --timeline "$folder/gpu-timeline.svg"
if python3 -c 'import torch' 2>/dev/null; then
  step "torch peers" 240 python3 bench/peers/torch_gpu.py "$folder/gpu.json"
else
  without "torch peers, no torch for python3"
fi
[ -e "$folder/gpu.json" ] && cat "$folder/gpu.json"
if command -v node >/dev/null && [ -d node_modules ]; then
  step addon 300 node scripts/bootstrap.mjs --quiet
  step "cluster tests" 300 env SWITCHYARD_DEVICE=cuda:0 NODE_NO_WARNINGS=1 node --experimental-vm-modules \
    node_modules/jest/bin/jest.js test/worker test/e2e
else
  without "a cluster, no node or no npm packages"
fi
echo
if [ ${#failed[@]} -gt 0 ]; then printf 'gpu-check: failed: %s\n' "${failed[@]}"; exit 1; fi
echo "gpu-check: all done; figures in $folder"
