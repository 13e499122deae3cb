#!/usr/bin/env bash
# Runs every example and looks whether it says what it should.
#
#   scripts/check-examples.sh [EXAMPLE...]
#
# SWITCHYARD_TRANSFORMERS_PYTHON may name an interpreter with torch, transformers, grpcio and grpcio-tools; else they are installed (large).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
source "$root/scripts/checks.sh"

# says EXAMPLE TEXT...: every text must be in what it says.
says() {
  local example=$1 said text
  shift
  said=$("$root/examples/$example/run.sh" 2>&1) || {
    echo "$said"
    return 1
  }
  for text in "$@"; do
    [[ $said == *"$text"* ]] || {
      printf 'it does not say "%s":\n%s\n' "$text" "$said"
      return 1
    }
  done
}

node() { says node 'tiny: 2 layers' 'batch: 1024 tokens, 524288 bytes' 'session: 2 blocks, 512 bytes'; }

grpcurl() { says grpcurl '"status": "SERVING"' '"ready": true' '"name": "tiny.moe.0"' '"batchId": "by-hand"' '"datatype": "INT32"'; }

python-triton() {
  says python-triton 'tiny.moe.1' 'rows: (32, 256)' 'give the same rows: True' 'stream: 0 1 2 3 4 5 6 7'
}

transformers() {
  PYTHON=${SWITCHYARD_TRANSFORMERS_PYTHON-} says transformers qwen3_moe deepseek_v3 deepseek_v4 '64 tokens, the same' '3 MoE blocks'
}

for example in "${@:-node grpcurl python-triton transformers}"; do
  for one in $example; do check "$one" "$one"; done
done
count_checks
