#!/usr/bin/env bash
# Checks the Helm chart: lints it, renders it for every file of values in deploy/chart/ci, validates each object strictly against
# the schemas of a Kubernetes version, lets the processes read their rendered configuration, and looks for objects that do not
# fit each other. Then it gives values that must be refused.
#
#   scripts/check-chart.sh
#
# helm and kubeconform are taken from PATH, or built once with Go into ${XDG_CACHE_HOME:-~/.cache}/switchyard/bin. The schemas
# are made of the OpenAPI document that the Go module of Kubernetes has, and of the definitions in that of the Prometheus operator.
# Ends with a line `N passed, N failed`, and with 1 if something failed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/switchyard
kubernetes=1.37.2
prometheus_operator=0.85.0
schemas=$cache/kubernetes-schemas/$kubernetes-$prometheus_operator
chart=$root/deploy/chart
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
source "$root/scripts/checks.sh"

# The program NAME, built of the Go package PACKAGE if it is not in PATH.
tool() {
  command -v "$1" && return
  if [[ ! -x $cache/bin/$1 ]]; then
    echo "building $2 …" >&2
    GOBIN=$cache/bin go install "$2" >&2
  fi
  echo "$cache/bin/$1"
}

# The directory of a Go module.
source_of() { go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }

render() { "$helm" template moe "$chart" --namespace moe --kube-version "$kubernetes" "$@"; }

# Whether values are refused with an error that has this text.
refused() {
  local text=$1
  shift
  if render --values "$chart/ci/minimal.yaml" "$@" >"$scratch/refused" 2>&1; then
    echo "it was rendered"
    return 1
  fi
  grep --fixed-strings -- "$text" "$scratch/refused" || { cat "$scratch/refused"; return 1; }
}

(cd "$root" && node scripts/bootstrap.mjs --quiet)
helm=$(tool helm helm.sh/helm/v3/cmd/helm@v3.22.0)
kubeconform=$(tool kubeconform github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0)
if [[ ! -f $schemas/definitions.json ]]; then
  module=$(source_of "k8s.io/kubernetes@v$kubernetes")
  operator=$(source_of "github.com/prometheus-operator/prometheus-operator@v$prometheus_operator")/example/prometheus-operator-crd
  node "$root/scripts/kubernetes-schemas.mjs" "$module/api/openapi-spec/swagger.json" "$schemas" \
    "$operator/monitoring.coreos.com_servicemonitors.yaml" "$operator/monitoring.coreos.com_prometheusrules.yaml"
fi

for values in "$chart"/ci/*.yaml; do
  name=$(basename "$values" .yaml)
  check "$name: lint" "$helm" lint "$chart" --strict --kube-version "$kubernetes" --values "$values"
  check "$name: renders" render --values "$values" --output-dir "$scratch/$name"
  check "$name: objects are what Kubernetes $kubernetes takes" "$kubeconform" -strict -summary \
    -schema-location "$schemas/{{.ResourceKind}}{{.KindSuffix}}.json" "$scratch/$name"
  check "$name: objects fit each other and the processes" node "$root/scripts/check-chart.mjs" "$scratch/$name"
done

check 'a Secret of tokens must be named' refused '/tokens/secret' --set tokens.secret=
check 'settings that do not exist are refused' refused "slabbytes" --set worker.config.slabbytes=1GiB
check 'settings of the chart are its own' refused "nodeTokenFile" --set router.config.nodeTokenFile=/tmp/token
check 'the router is no part of the coordinator' refused "budgetBytes" --set coordinator.config.budgetBytes=1GiB
check 'values that do not exist are refused' refused "replica" --set router.replica=3
check 'the drain is a number' refused "drainMs" --set-string worker.config.drainMs=30k
check 'workers have a memory limit' refused "memory" --set worker.resources.limits.memory=null
check 'pods do not run as root' refused "runAsUser" --set pod.runAsUser=0
check 'more workers expected than there are is refused' refused 'at most 2' --set coordinator.workersExpected=3
check 'two classes of one name are refused' refused 'unique names' --set 'workers[0].name=cpu' --set 'workers[1].name=cpu'
check 'the interval of scrapes is a duration' refused "interval" --set monitoring.interval=often
check 'old versions of Kubernetes are refused' refused 'incompatible' --kube-version 1.29.4

count_checks
