#!/usr/bin/env bash
# Makes the Python environment of the peers that `npm run bench` measures beside: in .venv, or where SWITCHYARD_PEERS says.
set -euo pipefail
directory=${SWITCHYARD_PEERS:-$(dirname "$0")/../../.venv}
python3 -m venv "$directory"
"$directory/bin/pip" install torch numpy safetensors transformers
# KTransformers pins an old PyTorch and the parts of a server that a benchmark does not need.
"$directory/bin/pip" install --no-deps kt-kernel gguf
