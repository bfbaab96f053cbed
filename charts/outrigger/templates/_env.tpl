{{/* The operator's settings. */}}
{{- define "outrigger.env" -}}
{{- $name := include "outrigger.fullname" . -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: POD_SERVICE_ACCOUNT
  valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}
{{- $proxy := .Values.proxy }}
{{- $settings := dict
  "OUTRIGGER_LOG" .Values.log
  "OUTRIGGER_LEASE" (printf "%s-operator" $name)
  "OUTRIGGER_PEER_SELECTOR" (printf "app.kubernetes.io/name=%s,app.kubernetes.io/instance=%s,app.kubernetes.io/component=operator" (include "outrigger.name" .) .Release.Name)
  "OUTRIGGER_OWNER_SERVICE" (printf "%s-push" $name)
  "OUTRIGGER_CA_SECRET" (printf "%s-ca" $name)
  "OUTRIGGER_TLS_SERVICES" (printf "%s-push,%s-webhook" $name $name)
  "OUTRIGGER_CLUSTER_DOMAIN" .Values.clusterDomain
  "OUTRIGGER_MUTATING_WEBHOOK" $name
  "OUTRIGGER_VALIDATING_WEBHOOK" (ternary $name "" .Values.webhook.validation.enabled)
  "OUTRIGGER_CA_LIFETIME" .Values.certificates.authorityLifetime
  "OUTRIGGER_CA_OVERLAP" .Values.certificates.authorityOverlap
  "OUTRIGGER_CERTIFICATE_LIFETIME" .Values.certificates.lifetime
  "OUTRIGGER_SESSION_KEYS_SECRET" (printf "%s-session-keys" $name)
  "OUTRIGGER_SESSION_KEY_LIFETIME" .Values.certificates.sessionKeyLifetime
  "OUTRIGGER_PUSH_ADDRESS" (printf "%s-push.%s.svc:8443" $name .Release.Namespace)
  "OUTRIGGER_PROXY_IMAGE" (include "outrigger.image" (list . $proxy.image))
  "OUTRIGGER_PROXY_IMAGE_PULL_POLICY" $proxy.image.pullPolicy
  "OUTRIGGER_PROXY_LOG" $proxy.log
  "OUTRIGGER_PROXY_PORT" $proxy.ports.data
  "OUTRIGGER_PROXY_ADMIN_PORT" $proxy.ports.admin
  "OUTRIGGER_PROXY_SIBLING_PORT" $proxy.ports.sibling
  "OUTRIGGER_PROXY_TRUSTED_HOPS" $proxy.trustedHops
  "OUTRIGGER_PROXY_TRUSTED_NETWORKS" (join "," $proxy.trustedNetworks)
  "OUTRIGGER_PROXY_MAX_CONNECTIONS" $proxy.maxConnections
}}
{{- /* Always, also when empty: an amount that is not set here must not become the operator's default. */}}
{{- range $kind, $suffix := dict "requests" "REQUEST" "limits" "LIMIT" }}
{{- $amounts := default dict (get $proxy.resources $kind) }}
{{- range $resource := list "cpu" "memory" }}
{{- $_ := set $settings (printf "OUTRIGGER_PROXY_%s_%s" (upper $resource) $suffix) (default "" (get $amounts $resource)) }}
{{- end }}
{{- end }}
{{- range $name, $value := $settings }}
{{- $text := ternary (toString (int64 $value)) (toString $value) (kindIs "float64" $value) }}
{{- if or $text (regexMatch "_(REQUEST|LIMIT)$" $name) }}
- {name: {{ $name }}, value: {{ $text | quote }}}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
