{{- define "merlon.labels" -}}
app.kubernetes.io/name: merlon
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: merlon
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "merlon.selector" -}}
app.kubernetes.io/name: merlon
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: control-plane
{{- end }}

{{- define "merlon.gatewaySelector" -}}
app.kubernetes.io/name: merlon
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
gateway.networking.k8s.io/gateway-name: merlon-gateway
{{- end }}

{{- define "merlon.image" -}}
{{- $root := index . 0 -}}
{{- printf "%s/%s:%s" (trimSuffix "/" $root.Values.images.registry) (index . 1) (default $root.Chart.AppVersion $root.Values.images.tag) -}}
{{- with get $root.Values.images.digests (index . 1) }}@{{ . }}{{ end -}}
{{- end }}

{{- /* Checks that the schema cannot express, with messages that contain the fix. They run before anything is rendered. */ -}}
{{- define "merlon.check" -}}
{{- if not .Values.mesh.trustDomain }}
{{- fail "\n\nmesh.trustDomain is not set.\nIt is the prefix of every identity of the mesh and cannot be changed later. Use a domain that you own:\n\n  mesh:\n    trustDomain: prod.example.org\n" }}
{{- end }}
{{- if not .Values.certificates.issuer }}
{{- fail "\n\ncertificates.issuer is not set. Choose what signs the mesh's certificates:\n\n  certificates:\n    issuer: vault       # Vault or OpenBao, prepared by certs/issuer/vault/setup.sh; set vault.address, too\n\n  certificates:\n    issuer: embedded    # a key in a Secret of this cluster, for development\n" }}
{{- end }}
{{- if and (eq .Values.certificates.issuer "vault") (not .Values.vault.address) }}
{{- fail "\n\ncertificates.issuer is vault, and vault.address is not set:\n\n  vault:\n    address: https://vault.example.org:8200\n" }}
{{- end }}
{{- if and (eq .Values.certificates.issuer "vault") (not (hasPrefix "https://" .Values.vault.address)) }}
{{- fail (printf "\n\nvault.address is %s: the control plane connects to Vault only by https\n" .Values.vault.address) }}
{{- end }}
{{- if and .Values.controlPlane.podDisruptionBudget.enabled (ge (int .Values.controlPlane.podDisruptionBudget.minAvailable) (int .Values.controlPlane.replicas)) (gt (int .Values.controlPlane.replicas) 1) }}
{{- fail "\n\ncontrolPlane.podDisruptionBudget.minAvailable must be less than controlPlane.replicas, or no node could be drained\n" }}
{{- end }}
{{- if and .Values.gateway.enabled .Values.gateway.podDisruptionBudget.enabled (ge (int .Values.gateway.podDisruptionBudget.minAvailable) (int .Values.gateway.replicas)) (gt (int .Values.gateway.replicas) 1) }}
{{- fail "\n\ngateway.podDisruptionBudget.minAvailable must be less than gateway.replicas, or no node could be drained\n" }}
{{- end }}
{{- end }}
