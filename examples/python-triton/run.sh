#!/usr/bin/env bash
# Runs infer.py against a cluster of two workers: examples/python-triton/run.sh
set -euo pipefail

name=python-triton
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/local-cluster.sh"

python=${PYTHON:-$(python_environment triton 'tritonclient[grpc]')}
start_cluster --preset tiny --workers 2
"$python" "$root/examples/python-triton/infer.py" "$(address_of coordinator)" tiny
