#!/usr/bin/env bash
# Runs forward.mjs against a cluster of three workers and two routers: examples/node/run.sh
set -euo pipefail

name=node
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/local-cluster.sh"

start_cluster --preset tiny --workers 3 --routers 1
node "$root/examples/node/forward.mjs" "$(address_of coordinator)"
