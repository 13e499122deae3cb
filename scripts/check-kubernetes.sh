#!/usr/bin/env bash
# Gives the rendered Helm chart, for every file of values in deploy/chart/ci, to a real Kubernetes API server with a real etcd: it
# takes each object, in a namespace that admits restricted pods alone, and warns of none. The real controllers make the pods of one of them, the real
# scheduler binds them to nodes of kwok by their labels, and kwok says that they run. Then two real coordinators, with the account that the chart
# makes for them, lead by a Lease and know the nodes; the one that leads is killed under load, and so with etcd.
#
#   scripts/check-kubernetes.sh
#
# It needs Go, and etcd in PATH (Debian: etcd-server). The programs are built once into ${XDG_CACHE_HOME:-~/.cache}/switchyard/bin,
# which takes two cores ten minutes. Everything listens on 127.0.0.1, on free ports, and is gone at the end.
# Ends with a line `N passed, N failed`, and with 1 if something failed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/switchyard
kubernetes=1.37.2
kwok=v0.8.0
prometheus_operator=v0.85.0
chart=$root/deploy/chart
scratch=$(mktemp -d)
processes=()
source "$root/scripts/checks.sh"
export PATH=$cache/bin:$PATH KUBECONFIG=$scratch/kubeconfig HELM_CACHE_HOME=$scratch/helm HELM_CONFIG_HOME=$scratch/helm HELM_DATA_HOME=$scratch/helm

fail() {
  echo "check-kubernetes: $*" >&2
  tail -n 5 "$scratch"/*.log >&2 || true
  exit 1
}

clean_up() {
  for ((at = ${#processes[@]} - 1; at >= 0; at--)); do
    kill "${processes[at]}" 2>/dev/null || true
    wait "${processes[at]}" 2>/dev/null || true
  done
  rm -rf "$scratch"
}
trap clean_up EXIT

# The directory of a Go module.
source_of() { go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }

# The module's releases depend on each other by folders that only its repository has.
build_kubernetes() {
  local module sources=$scratch/kubernetes version=k8s.io/component-base/version
  module=$(source_of "k8s.io/kubernetes@v$kubernetes")
  cp --recursive --no-preserve=mode "$module" "$sources"
  sed -E -i "s#(k8s\.io/[a-z-]+) => \./staging/src/k8s\.io/[a-z-]+#\1 => \1 v0.${kubernetes#1.}#" "$sources/go.mod"
  rm -rf "$sources"/{go.work,go.work.sum,vendor}
  (cd "$sources" && go mod tidy -e >/dev/null 2>&1 && go build -buildvcs=false -o "$cache/bin/" \
    -ldflags "-X $version.gitVersion=v$kubernetes -X $version.gitMajor=1 -X $version.gitMinor=${kubernetes:2:2}" \
    ./cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubectl})
  rm -rf "$sources"
}

build_programs() {
  command -v etcd >/dev/null || fail "etcd is not in PATH; Debian has it in etcd-server"
  mkdir -p "$cache/bin"
  for program in kube-apiserver kube-controller-manager kube-scheduler kubectl; do
    [[ -x $cache/bin/$program ]] || { build_kubernetes; break; }
  done
  [[ -x $cache/bin/kwok ]] || GOBIN=$cache/bin go install "sigs.k8s.io/kwok/cmd/kwok@$kwok"
  [[ -x $cache/bin/helm ]] || GOBIN=$cache/bin go install helm.sh/helm/v3/cmd/helm@v3.22.0
}

free_ports() {
  node -e 'const servers = Array.from({ length: Number(process.argv[1]) }, () => require("node:net").createServer().listen(0, "127.0.0.1"));
    setImmediate(() => { console.log(...servers.map((server) => server.address().port)); for (const server of servers) server.close(); });' "$1"
}

# Starts a program in the background; its output goes to a log of its name.
start() {
  "$@" >"$scratch/$1.log" 2>&1 &
  processes+=($!)
}

# Waits until a command succeeds.
until_true() {
  local seconds=$1
  shift
  for ((at = 0; at < seconds * 2; at++)); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.5
  done
  echo "not within $seconds s: $*"
  return 1
}

# Debian's etcd is too old for what caches of the API server ask of it.
start_api_server() {
  local peer api token
  read -r client peer api < <(free_ports 3)
  token=$(openssl rand -hex 16)
  openssl genrsa -out "$scratch/accounts.key" 2048 2>/dev/null
  echo "$token,admin,admin,system:masters" >"$scratch/tokens.csv"
  start etcd --data-dir "$scratch/etcd" --listen-client-urls "http://127.0.0.1:$client" \
    --advertise-client-urls "http://127.0.0.1:$client" --listen-peer-urls "http://127.0.0.1:$peer" \
    --initial-advertise-peer-urls "http://127.0.0.1:$peer" --initial-cluster "default=http://127.0.0.1:$peer"
  start kube-apiserver --etcd-servers "http://127.0.0.1:$client" --bind-address 127.0.0.1 --secure-port "$api" \
    --cert-dir "$scratch/certificates" --token-auth-file "$scratch/tokens.csv" --authorization-mode RBAC \
    --watch-cache=false --service-cluster-ip-range 10.96.0.0/16 --service-account-issuer https://kubernetes.default.svc \
    --service-account-key-file "$scratch/accounts.key" --service-account-signing-key-file "$scratch/accounts.key"
  kubectl config set-cluster local --server "https://127.0.0.1:$api" --insecure-skip-tls-verify >/dev/null
  kubectl config set-credentials admin --token "$token" >/dev/null
  kubectl config set-context local --cluster local --user admin >/dev/null
  kubectl config use-context local >/dev/null
  until_true 120 kubectl get --raw /readyz || fail "the API server does not become ready"
}

# Controllers, the scheduler, and kwok, which plays the kubelets of all nodes.
start_cluster() {
  start kube-controller-manager --kubeconfig "$KUBECONFIG" --leader-elect=false --secure-port 0 \
    --service-account-private-key-file "$scratch/accounts.key"
  start kube-scheduler --kubeconfig "$KUBECONFIG" --leader-elect=false --secure-port 0
  local stages
  stages=$(source_of "sigs.k8s.io/kwok@$kwok")/kustomize/stage
  for stage in node/fast/node-initialize pod/fast/pod-ready pod/fast/pod-delete; do
    echo ---
    cat "$stages/$stage.yaml"
  done >"$scratch/stages.yaml"
  # A node that renews no lease is taken for lost after 50 s.
  start kwok --kubeconfig "$KUBECONFIG" --manage-all-nodes=true --node-lease-duration-seconds=40 --config "$scratch/stages.yaml"
  for at in 1 2; do
    kubectl apply -f - >/dev/null <<NODE
apiVersion: v1
kind: Node
metadata:
  name: node-$(echo $at | tr 12 ab)
  labels:
    kubernetes.io/hostname: node-$(echo $at | tr 12 ab)
    topology.kubernetes.io/zone: zone-$at
    topology.kubernetes.io/rack: rack-$at
    nvidia.com/gpu.clique: fabric-$at.1
    nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3
    node-role.kubernetes.io/infra: ""
    feature.node.kubernetes.io/cpu-cpuid.AVX2: "true"
status:
  allocatable: &room { cpu: "64", memory: 256Gi, pods: "110", hugepages-2Mi: 4Gi, nvidia.com/gpu: "4", rdma/hca_shared_devices_a: "4" }
  capacity: *room
NODE
  done
  until_true 60 kubectl wait --for=condition=Ready --timeout 1s nodes --all || fail "the nodes of kwok do not become ready"
}

# The kinds that the chart has with monitoring. They are too long for what `kubectl apply` remembers.
prepare_kinds() {
  local definitions
  definitions=$(source_of "github.com/prometheus-operator/prometheus-operator@$prometheus_operator")/example/prometheus-operator-crd
  for kind in servicemonitors prometheusrules; do
    kubectl create -f "$definitions/monitoring.coreos.com_$kind.yaml" >/dev/null
    until_true 60 kubectl wait --for=condition=Established --timeout 1s "crd/$kind.monitoring.coreos.com" || fail "$kind are not served"
  done
}

prepare_namespace() {
  kubectl create namespace moe >/dev/null
  for mode in enforce warn; do kubectl label namespace moe "pod-security.kubernetes.io/$mode=restricted" >/dev/null; done
  until_true 60 kubectl --namespace moe get serviceaccount default || fail "the controllers make no account"
  kubectl apply -f - >/dev/null <<<'{ apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: { name: nvidia }, handler: nvidia }'
}

# Pods of the workloads are warned of, that of the test is refused.
taken() {
  helm template moe "$chart" --namespace moe --kube-version "$kubernetes" --values "$1" >"$scratch/rendered.yaml"
  kubectl apply --namespace moe --dry-run=server -f "$scratch/rendered.yaml" 2>&1 | tee "$scratch/applied"
  ! grep --ignore-case 'warning\|error\|forbidden' "$scratch/applied"
}

pods() { kubectl --namespace moe get pods --selector app.kubernetes.io/instance=moe --no-headers "$@"; }

# By the second column: ready containers, and all.
all_ready() { [[ $(pods | wc -l) -eq $1 && $(pods | grep --count ' 1/1 ') -eq $1 ]]; }

# Two coordinators, two routers, six workers of three classes.
scheduled() {
  helm template moe "$chart" --no-hooks --namespace moe --kube-version "$kubernetes" --values "$chart/ci/devices.yaml" \
    --set-json 'model.volume={"emptyDir":{}}' | kubectl apply --namespace moe -f -
  until_true 120 all_ready 10 || { pods; kubectl --namespace moe get events; return 1; }
  pods --output custom-columns=NAME:.metadata.name,NODE:.spec.nodeName
  for node in node-a node-b; do pods --output wide | grep "worker-.*$node"; done
}

# The account of the coordinators, as the chart makes it, with the topology of the cluster.
prepare_account() {
  helm template leaders "$chart" --namespace moe --kube-version "$kubernetes" --values "$chart/ci/autoscaled.yaml" \
    --show-only templates/coordinator.yaml | kubectl apply --namespace moe -f - >/dev/null
  local token
  token=$(kubectl --namespace moe create token leaders-switchyard-coordinator)
  sed "s/token: .*/token: $token/" "$KUBECONFIG" >"$scratch/coordinators"
  KUBECONFIG=$scratch/coordinators kubectl config set-context local --namespace moe >/dev/null
}

may() { KUBECONFIG=$scratch/coordinators kubectl auth can-i "$@" | grep --quiet '^yes'; }

least_rights() {
  may get leases/leaders-switchyard && may update leases/leaders-switchyard && may watch nodes
  ! may get leases/another && ! may delete leases/leaders-switchyard && ! may get secrets && ! may get pods && ! may update nodes
}

# Shows what a check found, though it passed.
shown() { "$@" | tee "$scratch/shown"; }

build_programs
(cd "$root" && node scripts/bootstrap.mjs --quiet)
start_api_server
start_cluster
prepare_kinds
prepare_namespace
kubectl get --raw /version | grep gitVersion
for values in "$chart"/ci/*.yaml; do
  name=$(basename "$values" .yaml)
  check "$name: the API server takes every object, in a namespace for restricted pods" taken "$values"
done
check 'devices: the controllers make the pods, and the scheduler finds a node for each' scheduled
prepare_account
check 'the account of the coordinators may do what they need, and nothing else' least_rights
KUBECONFIG=$scratch/coordinators check 'coordinators lead by a Lease of Kubernetes, and know its nodes' \
  shown node "$root/scripts/check-leaders.mjs" --lease=kubernetes --lease-name=leaders-switchyard --topology=kubernetes --hosts=node-a,node-b
cat "$scratch/shown"
check 'coordinators lead by a key of etcd' shown node "$root/scripts/check-leaders.mjs" --lease=etcd --etcd="127.0.0.1:$client"
cat "$scratch/shown"
count_checks
