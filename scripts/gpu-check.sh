#!/usr/bin/env bash
# Checks and measures the CUDA backend on this machine's GPU, and leaves the figures in a folder.
#
#   scripts/gpu-check.sh [--trial] [FOLDER [STEP...]]          (default: gpu-check, every step)
#
# In an unpacked bundle (scripts/gpu-bundle.sh) it needs a driver and cuBLASLt alone. In a checkout, or where the programs of the
# bundle do not run, it builds for the GPU that is there: with nvcc (on the PATH, or CUDACXX), cmake, g++ and GoogleTest.
# Steps come in the order of their worth, each with a limit, and together end within SWITCHYARD_GPU_CHECK_SECONDS (480). What the
# machine lacks is left out and named. Every figure is in gpu.json as soon as it is known; gpu-timeline.svg shows the overlap of the
# streams, gpu-clocks.csv the clocks, power and PCIe link all along, gpu-check.log everything that was printed. No setting of the
# device is changed. --trial takes small shapes: it shows that everything runs, and measures nothing.
set -uo pipefail
trial=
[ "${1:-}" != --trial ] || { trial=yes; shift; }
# What is wrong is told at once: time on a GPU machine is dear.
steps=("${@:2}") known=(device-tests benchmark cluster torch-peers compute-sanitizer cluster-tests)
known() { printf '%s\n' "${known[@]}" | grep -qxF -e "$1"; }
for name in "${steps[@]}"; do
  known "$name" || { echo "gpu-check: $name is no step; there are: ${known[*]}" >&2; exit 2; }
done
case ${1:-} in -*) echo "usage: $0 [--trial] [FOLDER [STEP...]]" >&2; exit 2 ;; esac
total=${SWITCHYARD_GPU_CHECK_SECONDS:-480}
[[ $total =~ ^[0-9]+$ ]] || { echo "gpu-check: SWITCHYARD_GPU_CHECK_SECONDS is $total, and not a number of seconds" >&2; exit 2; }
total=$((10#$total))
mkdir -p "${1:-gpu-check}" && folder=$(cd "${1:-gpu-check}" && pwd) || exit 1
{ : >"$folder/gpu-check.log"; } 2>/dev/null || { echo "gpu-check: $folder cannot be written" >&2; exit 1; }
cd "$(dirname "$0")/.." || exit 1
root=$PWD

exec 3>&1 4>&2 > >(exec tee "$folder/gpu-check.log") 2>&1
tee=$!
clocks=
end() {
  local status=$?
  [ -z "$clocks" ] || kill "$clocks"
  # All that was printed is in the log before the script has ended, unless a process that was left behind keeps it open.
  exec 1>&3 2>&4
  for _ in {1..50}; do
    kill -0 "$tee" 2>/dev/null || break
    sleep 0.1
  done
  exit "$status"
}
trap end EXIT

failed=() begun=()
# chosen NAME: whether the step is wanted. What others need, such as a build, always is.
chosen() { [ ${#steps[@]} -eq 0 ] || ! known "$1" || printf '%s\n' "${steps[@]}" | grep -qxF -e "$1"; }
# step NAME SECONDS COMMAND...: runs it within that time and what is left of all; a failure is kept for the end.
step() {
  local name=$1 limit=$2 start=$SECONDS samples status
  shift 2
  chosen "$name" || return 0
  [ $((total - SECONDS)) -ge "$limit" ] || limit=$((total - SECONDS))
  if [ "$limit" -le 0 ]; then without "$name, the time is up"; failed+=("$name"); return 1; fi
  samples=$(clock_lines)
  begun+=("$name")
  echo "== $name"
  timeout --kill-after=5 "$limit" "$@"
  status=$?
  clock_range "$samples"
  case $status in
    0) echo "== $name: ok, $((SECONDS - start)) s" ;;
    124 | 137) echo "== $name: FAILED, not done after $limit s" ;;
    *) echo "== $name: FAILED, status $status after $((SECONDS - start)) s" ;;
  esac
  [ $status -eq 0 ] || failed+=("$name")
  return $status
}
without() { echo "== left out: $1"; }
clock_lines() { if [ -e "$folder/gpu-clocks.csv" ]; then wc -l <"$folder/gpu-clocks.csv"; else echo 0; fi; }
# clock_range LINES: what was seen since the file had so many lines.
clock_range() {
  [ -z "$clocks" ] || awk -F ', *' -v from="$1" 'NR > from && NR > 1 {
      if (!count++) low = high = $2
      if ($2 < low) low = $2
      if ($2 > high) high = $2
      if ($4 > most) most = $4
      power += $4
    }
    END { if (count) printf "   SM clock %d to %d MHz, power %d W on average, %d W at most\n", low, high, power / count, most }' "$folder/gpu-clocks.csv"
}

# find_library NAME: the folder that has it, beyond where the loader looks: toolkits, and the wheels that PyTorch brings.
find_library() {
  local folders=() path
  [ -z "${CUDA_HOME:-}" ] || folders+=("$CUDA_HOME"/lib64 "$CUDA_HOME"/targets/x86_64-linux/lib)
  path=$(command -v "${CUDACXX:-nvcc}") && folders+=("$(dirname "$(readlink -f "$path")")"/../{lib64,lib,targets/x86_64-linux/lib})
  folders+=(/usr/local/cuda*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib /opt/cuda/lib64)
  while read -r path; do folders+=("$path"/nvidia/*/lib); done < <(python3 -c 'import sys; print("\n".join(filter(None, sys.path)))' 2>/dev/null)
  for path in "${folders[@]}"; do
    if [ -e "$path/$1" ]; then (cd "$path" && pwd); return; fi
  done
  return 1
}

libraries=
# load_path FOLDER...: a value for LD_LIBRARY_PATH, the folders that have names before the machine's own.
load_path() {
  local one path=
  for one in "$@" "${LD_LIBRARY_PATH:-}"; do [ -z "$one" ] || path+=${path:+:}$one; done
  echo "$path"
}
# describe PROGRAMS: what the device is, by the benchmark there; finds cuBLASLt for it.
describe() {
  local said missing
  [ -x "$1/gpu_bench" ] || return 1
  said=$(LD_LIBRARY_PATH=$(load_path "$libraries") "$1/gpu_bench" --describe 2>&1) && { echo "$said"; return 0; }
  missing=$(sed -n 's/.*error while loading shared libraries: \([^:]*\):.*/\1/p' <<<"$said")
  if [ -n "$missing" ] && [ -z "$libraries" ] && libraries=$(find_library "$missing"); then
    echo "$missing: in $libraries"
    describe "$1"
  else
    echo "$1/gpu_bench: $said"
    return 1
  fi
}

if command -v nvidia-smi >/dev/null; then
  nvidia-smi
  nvidia-smi --query-gpu=name,driver_version,pcie.link.gen.max,pcie.link.width.max,clocks.max.sm,clocks.max.mem,power.limit --format=csv
  fields=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,pcie.link.gen.current,pcie.link.width.current
  nvidia-smi --query-gpu=$fields --format=csv,nounits --id=0 --loop-ms=250 >"$folder/gpu-clocks.csv" &
  clocks=$!
else
  without "clocks, power and the PCIe link, no nvidia-smi"
fi

programs=$root/bin
if ! describe "$programs"; then
  command -v nvidia-smi >/dev/null || { echo "gpu-check: nothing runs here, and there is no nvidia-smi that tells of a device to build for" >&2; exit 1; }
  command -v "${CUDACXX:-nvcc}" >/dev/null || { echo "gpu-check: nothing runs here, and there is no nvcc to build it" >&2; exit 1; }
  architecture=${SWITCHYARD_CUDA_ARCHITECTURE:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader --id=0 | tr -d .)}
  build=native/build-gpu
  prefix=()
  [ ! -d googletest ] || prefix=(-DGTEST_ROOT="$root/googletest")
  step configure 60 cmake -S native -B $build -DSWITCHYARD_CUDA=ON -DSWITCHYARD_TESTS=ON -DSWITCHYARD_BENCH=ON \
    -DCMAKE_CUDA_ARCHITECTURES="$architecture" "${prefix[@]}" &&
    step build 240 cmake --build $build --parallel "$(nproc)" --target switchyard_cuda experts_cuda gpu_bench
  programs=$root/$build/programs
  mkdir -p "$programs"
  ln -sf ../test/experts_cuda ../bench/gpu_bench "$programs"
  describe "$programs" || { echo "gpu-check: no device, or the backend does not build" >&2; exit 1; }
fi
# PyTorch runs with the libraries of its own.
own=(env LD_LIBRARY_PATH="$(load_path "$libraries")")

small=() filter='*' figure=cluster/gpu-seed runs=3
[ -z "$trial" ] || { small=(--trial) filter='*Registered*:*Infinity*:*DoesNotFit*' figure=cluster/gpu-tiny runs=1; }
step device-tests 90 "${own[@]}" "$programs/experts_cuda" --gtest_filter="$filter"
# Figures of an earlier run must not pass for those of this one.
if chosen benchmark && [ -e "$folder/gpu.json" ]; then mv "$folder/gpu.json" "$folder/gpu-before.json"; fi
step benchmark 120 "${own[@]}" "$programs/gpu_bench" "${small[@]}" --json "$folder/gpu.json" --timeline "$folder/gpu-timeline.svg"

node=$root/bin/node
[ -x "$node" ] || node=$(command -v node)
if [ -z "$node" ] || [ ! -d node_modules ]; then
  without "a cluster, no node or no npm packages"
elif chosen cluster; then
  # A bundle has all of it; only the backend may have been built anew.
  if [ ! -x bin/node ]; then step addon 240 "$node" scripts/bootstrap.mjs
  elif [ "$programs" != "$root/bin" ]; then cp native/build-gpu/switchyard_cuda.so native/build/Release/; fi
  rm -f "$folder/cluster.json"
  step cluster 110 env LD_LIBRARY_PATH="$(load_path "$libraries" "$root/lib")" SWITCHYARD_BENCH_PROGRAMS="$programs" \
    "$node" dist/bin/switchyard.js bench $figure --device cuda:0 --runs $runs --json "$folder/cluster.json"
  [ ! -s "$folder/cluster.json" ] || "$node" scripts/merge-reports.mjs "$folder/gpu.json" "$folder/cluster.json"
  rm -f "$folder/cluster.json"
fi

if [ -n "$trial" ]; then
  without "torch's figures, in a trial"
elif python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null; then
  step torch-peers 110 python3 bench/peers/torch_gpu.py "$folder/gpu.json"
else
  without "torch's figures, no torch for python3"
fi
[ ! -e "$folder/gpu.json" ] || cat "$folder/gpu.json"

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
if [ -z "$sanitizer" ]; then
  without "compute-sanitizer, not on the PATH nor in a toolkit"
elif timeout 20 "${own[@]}" "$sanitizer" "$programs/gpu_bench" --describe 2>&1 | grep -qF 'Device not supported'; then
  # As on virtual machines that do not let debuggers at the device.
  without "compute-sanitizer, which does not support this device"
else
  step compute-sanitizer 45 "${own[@]}" "$sanitizer" --error-exitcode 1 "$programs/experts_cuda" --gtest_filter='*Registered*:*Infinity*'
fi
if [ -d node_modules/jest ]; then
  step cluster-tests 600 "${own[@]}" SWITCHYARD_DEVICE=cuda:0 NODE_NO_WARNINGS=1 "$node" --experimental-vm-modules \
    node_modules/jest/bin/jest.js test/worker test/e2e
else
  without "cluster-tests, no jest"
fi
echo
# Who asks for a step wants to know that it did not run.
for name in "${steps[@]}"; do
  printf '%s\n' "${begun[@]}" "${failed[@]}" | grep -qxF -e "$name" || failed+=("$name, left out")
done
if [ ${#failed[@]} -gt 0 ]; then printf 'gpu-check: failed: %s\n' "${failed[@]}"; exit 1; fi
echo "gpu-check: all done after $SECONDS s; figures in $folder"
