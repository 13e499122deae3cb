#!/usr/bin/env bash
# Generates text with a tiny Qwen3-MoE, DeepSeek-V3 and DeepSeek-V4, whose MoE blocks two workers compute, and compares with the models alone.
#
#   examples/transformers/run.sh
#
# PYTHON may name an interpreter that has torch, transformers, grpcio and grpcio-tools; else they are installed once (large).
set -euo pipefail

name=transformers
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/local-cluster.sh"
here=$root/examples/transformers

python=${PYTHON:-$(python_environment transformers torch transformers grpcio grpcio-tools)}
for family in qwen3_moe deepseek_v3 deepseek_v4; do
  checkpoint=$scratch/$family
  "$python" "$here/make_checkpoint.py" "$family" "$checkpoint" 2>/dev/null
  start_cluster --model "$checkpoint" --workers 2
  echo "$family"
  "$python" "$here/generate.py" "$(address_of coordinator)" "$checkpoint" 2>/dev/null || fail "$family"
  stop_cluster
done
