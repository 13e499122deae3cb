#!/usr/bin/env bash
# Checks the Open Inference Protocol of a small local cluster with clients that others have made: tritonclient, as it comes from
# PyPI, and perf_analyzer.
#
#   scripts/check-triton.sh
#
# The clients are installed once into ${XDG_CACHE_HOME:-~/.cache}/switchyard. perf_analyzer comes with an older tritonclient and needs
# libb64.so.0d of the system (Debian: libb64-0d). Exits with 1 at the first thing that is not as it should be.
set -euo pipefail

name=check-triton
source "$(dirname "${BASH_SOURCE[0]}")/local-cluster.sh"

# Into $perf_analyzer, with the library that it is linked with and does not use here.
find_perf_analyzer() {
  local folder=$cache/perf-analyzer pip=("$python" -m pip --quiet --disable-pip-version-check)
  perf_analyzer=$folder/tritonclient-2.41.0.data/data/bin/perf_analyzer
  export LD_LIBRARY_PATH=$folder/nvidia/cuda_runtime/lib
  if [[ ! -x $perf_analyzer ]]; then
    "${pip[@]}" download --no-deps --dest "$scratch" tritonclient==2.41.0 'nvidia-cuda-runtime-cu12<13' >&2
    local wheel
    for wheel in "$scratch"/*.whl; do python3 -m zipfile -e "$wheel" "$folder"; done
    chmod +x "$perf_analyzer"
  fi
  "$perf_analyzer" --version >/dev/null 2>"$scratch/perf.log" || fail "perf_analyzer does not start: $(cat "$scratch/perf.log")"
}

# analyze WHAT OPTION...: a short run; it must have sent requests, and none may have failed.
analyze() {
  local what=$1
  shift
  "$perf_analyzer" -i grpc -u "$address" --measurement-mode count_windows --measurement-request-count 20 \
    --stability-percentage 999 --max-trials 3 "$@" >"$scratch/perf.log" 2>&1 || {
    cat "$scratch/perf.log" >&2
    fail "perf_analyzer, $what"
  }
  local result
  result=$(grep '^Concurrency:' "$scratch/perf.log") || fail "perf_analyzer, $what: no result: $(cat "$scratch/perf.log")"
  echo "ok  perf_analyzer, $what: ${result#*, }"
}

python=$(python_environment triton 'tritonclient[grpc]' ml_dtypes)
find_perf_analyzer
start_cluster --preset tiny --workers 2 --routers 1 --no-feedback
address=$(address_of router-0)
"$python" "$root/scripts/check-triton.py" "$address"
"$python" "$root/scripts/check-triton.py" "$(address_of coordinator)" >/dev/null || fail "the router that the coordinator embeds"
echo "ok  the router that the coordinator embeds: the same"
analyze "all layers" -m tiny --shape hidden_states:16,256
analyze "a bare block, 4 at once" -m tiny.moe.0 --shape hidden_states:1,256 --concurrency-range 4
analyze "streams" -m tiny.layer.1 --shape hidden_states:16,256 --streaming --async
analyze "shared memory" -m tiny --shape hidden_states:16,256 --shared-memory system --output-shared-memory-size 65536
echo "$name: all is as it should be"
