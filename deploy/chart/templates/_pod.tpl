{{- /*
The template of a component's pods. Beside root, component, class and values it is given `config`, the section of its
configuration file, `roles`, the tokens that its processes need by the keys of the Secret, `drainMs` by default,
`preStopSeconds`, and `health`, the name by which grpc.health.v1 tells readiness.
*/ -}}
{{- define "switchyard.podTemplate" -}}
{{- $pod := include "switchyard.podValues" . | fromJson -}}
{{- $name := include "switchyard.name" . -}}
{{- $config := $pod.config -}}
{{- $scheme := .root.Values.tls.secret | empty | ternary "HTTP" "HTTPS" -}}
metadata:
  labels:
    {{- include "switchyard.selector" . | nindent 4 }}
    {{- with $pod.labels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    # A new configuration starts new pods.
    checksum/config: {{ include "switchyard.configData" . | sha256sum }}
    {{- with $pod.annotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "switchyard.fullname" .root }}-{{ .component }}
  automountServiceAccountToken: {{ eq .component "coordinator" }}
  enableServiceLinks: false
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  # Longer than a drain and what ends after it.
  terminationGracePeriodSeconds: {{ include "switchyard.graceSeconds" (dict "drainMs" (dig "drainMs" .drainMs $config) "preStopSeconds" .preStopSeconds) }}
  securityContext: {{- include "switchyard.podSecurity" $pod | nindent 4 }}
  {{- range $key := list "nodeSelector" "affinity" "tolerations" }}
  {{- with get $pod $key }}
  {{ $key }}: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- range $key := list "priorityClassName" "runtimeClassName" }}
  {{- with get $pod $key }}
  {{ $key }}: {{ . }}
  {{- end }}
  {{- end }}
  {{- $spread := list }}
  {{- range $pod.topologySpreadConstraints }}
  {{- $spread = append $spread (merge (deepCopy .) (dict "labelSelector" (dict "matchLabels" (include "switchyard.selector" $ | fromYaml)))) }}
  {{- end }}
  {{- with $spread }}
  topologySpreadConstraints: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "switchyard.image" . }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args: [{{ .component }}, --config, /etc/switchyard/config/config.yaml]
      env:
        - name: SWITCHYARD_ADVERTISE_HOST
          valueFrom: { fieldRef: { fieldPath: status.podIP } }
        - name: SWITCHYARD_NAME
          valueFrom: { fieldRef: { fieldPath: metadata.name } }
        {{- if eq .component "worker" }}
        - name: SWITCHYARD_TOPOLOGY_HOST
          valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
        {{- end }}
        {{- if not (hasKey $config "threads") }}
        # Without a CPU limit a process would take itself to own every core of its node.
        - name: SWITCHYARD_THREADS
          valueFrom: { resourceFieldRef: { resource: requests.cpu, divisor: '1' } }
        {{- end }}
        {{- with $pod.env }}{{ toYaml . | nindent 8 }}{{ end }}
      ports:
        - { name: grpc, containerPort: 7070 }
        - { name: metrics, containerPort: 7071 }
      startupProbe:
        httpGet: { path: /healthz, port: metrics, scheme: {{ $scheme }} }
        periodSeconds: 5
        failureThreshold: {{ divf $pod.startupSeconds 5 | ceil }}
      livenessProbe:
        httpGet: { path: /healthz, port: metrics, scheme: {{ $scheme }} }
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        {{- if .root.Values.tls.secret }}
        # Kubernetes asks grpc.health.v1 without TLS alone.
        httpGet: { path: {{ eq .component "coordinator" | ternary "/healthz" "/readyz" }}, port: metrics, scheme: HTTPS }
        {{- else }}
        grpc: { port: 7070, service: {{ .health }} }
        {{- end }}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      {{- with .preStopSeconds }}
      # Services forget the pod before it refuses batches.
      lifecycle: { preStop: { sleep: { seconds: {{ . }} } } }
      {{- end }}
      resources: {{- toYaml $pod.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: { drop: [ALL] }
      volumeMounts:
        - { name: config, mountPath: /etc/switchyard/config, readOnly: true }
        - { name: tokens, mountPath: /etc/switchyard/tokens, readOnly: true }
        {{- if .root.Values.tls.secret }}
        - { name: tls, mountPath: /etc/switchyard/tls, readOnly: true }
        {{- end }}
        # Digests of weights outlast a restart of the container.
        - { name: cache, mountPath: /var/cache/switchyard }
        {{- if .root.Values.model.volume }}
        - { name: models, mountPath: /models, readOnly: true }
        {{- end }}
        {{- if $pod.sharedMemory }}
        - { name: shared-memory, mountPath: /dev/shm }
        {{- end }}
  volumes:
    - name: config
      configMap: { name: {{ $name }} }
    - name: tokens
      secret:
        secretName: {{ .root.Values.tokens.secret }}
        defaultMode: 0400
        items:
          {{- range $role, $key := .roles }}
          - { key: {{ $key }}, path: {{ $role }} }
          {{- end }}
    {{- with .root.Values.tls.secret }}
    - name: tls
      secret: { secretName: {{ . }}, defaultMode: 0400 }
    {{- end }}
    - name: cache
      emptyDir: { sizeLimit: 64Mi }
    {{- with .root.Values.model.volume }}
    - name: models
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $pod.sharedMemory }}
    - name: shared-memory
      emptyDir: { medium: Memory, sizeLimit: {{ . }} }
    {{- end }}
{{- end -}}

{{- /* What Kubernetes calls `restricted`, but for what containers set themselves. Files of volumes belong to the user's group. */ -}}
{{- define "switchyard.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .runAsUser }}
runAsGroup: {{ .runAsUser }}
fsGroup: {{ .runAsUser }}
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "switchyard.graceSeconds" -}}
{{ add (divf .drainMs 1000 | ceil) (default 0 .preStopSeconds) 5 }}
{{- end -}}

{{- /* The configuration file of a component: what the chart decides, over what values say. */ -}}
{{- define "switchyard.configData" -}}
{{- $fixed := dict "host" "0.0.0.0" "port" 7070 "metricsPort" 7071 -}}
{{- range $role, $key := .roles -}}
{{- $_ := set $fixed (printf "%sTokenFile" $role) (printf "/etc/switchyard/tokens/%s" $role) -}}
{{- end -}}
{{- if .root.Values.tls.secret -}}
{{- range $key, $file := dict "tlsCert" "tls.crt" "tlsKey" "tls.key" "tlsCa" "ca.crt" "tlsClientCa" "ca.crt" -}}
{{- $_ := set $fixed $key (printf "/etc/switchyard/tls/%s" $file) -}}
{{- end -}}
{{- end -}}
config.yaml: |
  {{- dict .component (mergeOverwrite (deepCopy .values.config) $fixed .config) | toYaml | nindent 2 }}
{{- with .topology }}
topology.yaml: |
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "switchyard.configMap" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "switchyard.name" . }}
  labels: {{- include "switchyard.labels" . | nindent 4 }}
data:
  {{- include "switchyard.configData" . | nindent 2 }}
{{- end -}}
