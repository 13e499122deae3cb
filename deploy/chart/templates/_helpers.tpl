{{- define "switchyard.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- default $full .Values.fullnameOverride | trunc 30 | trimSuffix "-" -}}
{{- end -}}

{{- /* Whatever is made for one component is called with {root, component, class, values}; class is that of a worker, else empty. */ -}}

{{- define "switchyard.name" -}}
{{ include "switchyard.fullname" .root }}-{{ .component }}{{ with .class }}-{{ . }}{{ end }}
{{- end -}}

{{- define "switchyard.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .class }}
switchyard/class: {{ . }}
{{- end }}
{{- end -}}

{{- define "switchyard.labels" -}}
{{ include "switchyard.selector" . }}
app.kubernetes.io/part-of: switchyard
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{- /* The label of pods that the network policies let in as clients. */ -}}
{{- define "switchyard.clientLabel" -}}
{{ include "switchyard.fullname" . }}-client: 'true'
{{- end -}}

{{- /* All coordinators: one of them leads. */ -}}
{{- define "switchyard.coordinatorAddresses" -}}
{{- $name := printf "%s-coordinator" (include "switchyard.fullname" .) -}}
{{- $addresses := list -}}
{{- range until (int .Values.coordinator.replicas) -}}
{{- $addresses = append $addresses (printf "%s-%d.%s:7070" $name . $name) -}}
{{- end -}}
{{ join "," $addresses }}
{{- end -}}

{{- define "switchyard.image" -}}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) (default dict .values.image) -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- /* Values of a component: its own over those of all pods. */ -}}
{{- define "switchyard.podValues" -}}
{{ mergeOverwrite (deepCopy .root.Values.pod) (deepCopy .values) | toJson }}
{{- end -}}

{{- /* The classes of workers, each with the values that all workers share. */ -}}
{{- define "switchyard.workerClasses" -}}
{{- $classes := list -}}
{{- range .Values.workers -}}
{{- $classes = append $classes (mergeOverwrite (deepCopy $.Values.worker) (deepCopy .)) -}}
{{- end -}}
{{ $classes | toJson }}
{{- end -}}

{{- /* At most one pod is down on purpose; a single one may be, since a budget of it would hold up every drain of its node. */ -}}
{{- define "switchyard.disruptionBudget" -}}
{{- if gt (int .replicas) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "switchyard.name" . }}
  labels: {{- include "switchyard.labels" . | nindent 4 }}
spec:
  minAvailable: {{ sub (int .replicas) 1 }}
  # A pod that is not ready protects nothing.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "switchyard.selector" . | nindent 6 }}
{{- end }}
{{- end -}}

{{- /* Coordinators alone call the Kubernetes API, and alone have a role; their pods ask for the token. */ -}}
{{- define "switchyard.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "switchyard.fullname" .root }}-{{ .component }}
  labels: {{- include "switchyard.labels" (dict "root" .root "component" .component) | nindent 4 }}
automountServiceAccountToken: false
{{- end -}}
