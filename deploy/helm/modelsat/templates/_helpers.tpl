{{- define "modelsat.name" -}}
{{- $name := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) }}
{{- $name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* With a GPU, an image without CUDA would reserve it and serve on the CPU. */}}
{{- define "modelsat.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (ternary "gpu" "cpu" .Values.gpu.enabled) }}
{{- end }}

{{- define "modelsat.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of the pod of `helm test`, which no service and no disruption budget may select. */}}
{{- define "modelsat.testSelector" -}}
app.kubernetes.io/component: test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "modelsat.backupSelector" -}}
app.kubernetes.io/component: backup
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "modelsat.labels" -}}
{{ include "modelsat.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Refuse values that cannot work together at installation, not by a pod that never starts. */}}
{{- define "modelsat.check" -}}
{{- $one := not .Values.store.urlSecret }}
{{- if and $one (or .Values.autoscaling.enabled (gt (int .Values.replicas) 1)) }}
{{- fail "more than one replica needs store.urlSecret: an SQLite store has one server at a time" }}
{{- end }}
{{- if not (or .Values.tokens.secret .Values.tls.clientSecret .Values.tokens.allowAnonymous) }}
{{- fail "nothing asks who calls: set tokens.secret or tls.clientSecret, or tokens.allowAnonymous to serve anyone who reaches the pod" }}
{{- end }}
{{- if and .Values.tls.clientSecret (not .Values.tls.secret) }}
{{- fail "tls.clientSecret needs tls.secret" }}
{{- end }}
{{- if and .Values.backup.enabled (not .Values.store.urlSecret) (not .Values.store.persistence.enabled) }}
{{- fail "backup.enabled needs store.urlSecret or store.persistence.enabled: otherwise no other pod reaches the stores" }}
{{- end }}
{{- end }}

{{/* Not empty if the pod has a volume of its own for the SQLite files. */}}
{{- define "modelsat.claim" -}}
{{- if and .Values.store.persistence.enabled (not .Values.store.urlSecret) }}yes{{ end }}
{{- end }}

{{/* Where candidates and outcomes are, as environment variables; without a database the image's own. */}}
{{- define "modelsat.stores" -}}
{{- $found := list }}
{{- if .Values.store.urlSecret }}
{{- $from := dict "secretKeyRef" (dict "name" .Values.store.urlSecret "key" .Values.store.urlKey) }}
{{- range $name := list "MODELSAT_CANDIDATES_DB" "MODELSAT_OUTCOMES_DB" }}
{{- $found = append $found (dict "name" $name "valueFrom" $from) }}
{{- end }}
{{- end }}
{{- $found | toYaml }}
{{- end }}

{{/* A file of deploy/, which the folder files/ has as a link. */}}
{{- define "modelsat.file" -}}
{{- $text := .root.Files.Get (printf "files/%s" .name) }}
{{- if not (contains "\n" $text) }}
{{- fail (printf "files/%s of the chart is missing, or a link that was not followed: package the chart from a complete checkout" .name) }}
{{- end }}
{{- $text }}
{{- end }}

{{/* A number in a form that TOML and Python read: not 1e+06. */}}
{{- define "modelsat.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ . | toJson }}{{ end }}
{{- end }}

{{/* Kubernetes' gRPC probes speak plain text; with TLS, use the image's own health command. */}}
{{- define "modelsat.probe" -}}
{{- if .root.Values.tls.secret -}}
exec:
  command: {{ concat (list "modelsat" "health" "--service" .service) (include "modelsat.access" .root | fromJsonArray) | toJson }}
timeoutSeconds: 5
periodSeconds: 10
{{- else -}}
grpc:
  port: {{ .root.Values.ports.grpc }}
  service: {{ .service }}
timeoutSeconds: 2
periodSeconds: {{ .period }}
{{- end }}
{{- end }}

{{- define "modelsat.access" -}}
{{- $flags := list "--server" (printf "localhost:%v" (int .Values.ports.grpc)) }}
{{- if .Values.tls.secret }}
{{- $flags = concat $flags (list "--tls-ca" "/etc/modelsat/tls/ca.crt" "--tls-server-name" .Values.tls.serverName) }}
{{- end }}
{{- if .Values.tls.clientSecret }}
{{- $flags = concat $flags (list "--tls-cert" "/etc/modelsat/client/tls.crt" "--tls-key" "/etc/modelsat/client/tls.key") }}
{{- end }}
{{- $flags | toJson }}
{{- end }}

{{- define "modelsat.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "modelsat.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* name -> secret with the files of /etc/modelsat/name; the server reloads them when they change. */}}
{{- define "modelsat.secrets" -}}
{{- dict "tokens" .Values.tokens.secret "tls" .Values.tls.secret "client" .Values.tls.clientSecret | toJson }}
{{- end }}

{{- define "modelsat.resources" -}}
{{- $gpu := .Values.gpu.enabled | ternary (dict "limits" (dict "nvidia.com/gpu" .Values.gpu.count)) dict }}
{{- merge $gpu (deepCopy .Values.resources) | toYaml }}
{{- end }}
