#!/usr/bin/env bash
# Builds, checks and measures the CUDA backend on this machine's GPU, and leaves the figures in a folder.
#
#   scripts/gpu-check.sh [FOLDER [STEP...]]          (default: gpu-check, every step)
#
# Needs nvcc (on the PATH, or CUDACXX), cmake, g++ and GoogleTest. Used where they are there: compute-sanitizer; python3
# with torch, for the peers; node with the npm packages installed, for a cluster (scripts/gpu-bundle.sh brings them to a
# machine without a network). What is left out is named. Writes gpu.json, gpu-timeline.svg and gpu-check.log. The figures
# come first; with everything there it takes about 15 minutes. Steps are named by the lines "== STEP".
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-gpu-check}
steps=("${@:2}")
mkdir -p "$folder"
exec > >(tee "$folder/gpu-check.log") 2>&1

failed=()
# step NAME SECONDS COMMAND...: runs it within that time; a failure is kept for the end.
step() {
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  [ ${#steps[@]} -eq 0 ] || printf '%s\n' "${steps[@]}" | grep -qxF "$name" || return 0
  echo "== $name"
  if timeout "$limit" "$@"; then echo "== $name: ok, $((SECONDS - start)) s"; else failed+=("$name"); echo "== $name: FAILED"; fi
}
without() { echo "== left out: $1"; }

nvidia-smi || { echo "gpu-check: no NVIDIA device here" >&2; exit 1; }
build=native/build-gpu
architecture=${SWITCHYARD_CUDA_ARCHITECTURE:-native}
step configure 60 cmake -S native -B $build -DSWITCHYARD_CUDA=ON -DSWITCHYARD_TESTS=ON -DSWITCHYARD_BENCH=ON \
  -DCMAKE_CUDA_ARCHITECTURES="$architecture"
step build 300 cmake --build $build --parallel "$(nproc)" --target switchyard_cuda experts_cuda experts_cuda_plan gpu_bench
step host-tests 60 $build/test/experts_cuda_plan --gtest_brief=1
step device-tests 180 $build/test/experts_cuda
step benchmark 180 $build/bench/gpu_bench --json "$folder/gpu.json" --timeline "$folder/gpu-timeline.svg"
cluster=
if command -v node >/dev/null && [ -d node_modules ]; then
  cluster=yes
  step addon 300 node scripts/bootstrap.mjs
  step cluster 300 node dist/services/cli/main.js bench cluster/gpu-seed --device cuda:0 --json "$folder/cluster.json"
  [ -e "$folder/cluster.json" ] && node scripts/merge-reports.mjs "$folder/gpu.json" "$folder/cluster.json" &&
    rm "$folder/cluster.json"
else
  without "a cluster, no node or no npm packages"
fi
if python3 -c 'import torch' 2>/dev/null; then
  step torch-peers 300 python3 bench/peers/torch_gpu.py "$folder/gpu.json"
else
  without "torch's figures, no torch for python3"
fi
[ -e "$folder/gpu.json" ] && cat "$folder/gpu.json"
if command -v compute-sanitizer >/dev/null; then
  step compute-sanitizer 180 compute-sanitizer --error-exitcode 1 $build/test/experts_cuda \
    --gtest_filter='*Agree*:*Registered*:*Infinity*'
else
  without "compute-sanitizer, not on the PATH"
fi
if [ -n "$cluster" ]; then
  step cluster-tests 600 env SWITCHYARD_DEVICE=cuda:0 NODE_NO_WARNINGS=1 node --experimental-vm-modules \
    node_modules/jest/bin/jest.js test/worker test/e2e
fi
echo
if [ ${#failed[@]} -gt 0 ]; then printf 'gpu-check: failed: %s\n' "${failed[@]}"; exit 1; fi
echo "gpu-check: all done; figures in $folder"
