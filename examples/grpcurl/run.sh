#!/usr/bin/env bash
# Asks a cluster by hand: its health, its model, a batch of two tokens in its own protocol and one in the Open Inference Protocol.
#
#   examples/grpcurl/run.sh
set -euo pipefail

name=grpcurl
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/local-cluster.sh"

grpcurl=$(go_tool grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3)
start_cluster --preset tiny --workers 2
address=$(address_of coordinator)
ask() { "$grpcurl" -plaintext -max-time 30 "$@"; }

echo "health:"
ask "$address" grpc.health.v1.Health/Check
ask "$address" inference.GRPCInferenceService/ServerReady

echo "model:"
ask "$address" switchyard.v1.Inference/DescribeModel | grep -E '"(name|hidden)"'
ask -d '{"name": "tiny.moe.0"}' "$address" inference.GRPCInferenceService/ModelMetadata

# 2 tokens of 256 values 1.0: 0x3f80 in BF16, little-endian.
rows=$(for ((value = 0; value < 2 * 256; value++)); do printf '\200\077'; done | base64 -w 0)
echo "a batch:"
ask -d @ "$address" switchyard.v1.Inference/Forward <<EOF2 | cut -c 1-100
{"header": {"batchId": "by-hand", "sequences": 1, "length": 2, "hidden": 256, "dtype": "BF16"}}
{"chunk": {"offset": "0", "rows": "$rows"}}
EOF2

ones=$(for ((value = 0; value < 255; value++)); do printf '1,'; done)1
echo "a request of the Open Inference Protocol:"
ask -d @ "$address" inference.GRPCInferenceService/ModelInfer <<EOF2 | cut -c 1-100
{"model_name": "tiny.moe.0", "outputs": [{"name": "topk_ids"}, {"name": "hidden_states"}], "inputs": [
  {"name": "hidden_states", "datatype": "FP32", "shape": [1, 256], "contents": {"fp32_contents": [$ones]}}]}
EOF2
