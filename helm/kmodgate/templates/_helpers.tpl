{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{/* Names. */}}

{{- define "kmodgate.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{/* Names of objects that belong to no namespace: two releases in two namespaces must not meet. */}}
{{- define "kmodgate.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "kmodgate.fullname" .) -}}
{{- end }}

{{/* The same where a DNS name is asked for. */}}
{{- define "kmodgate.clusterDnsName" -}}
{{- printf "%s.%s" .Release.Namespace (include "kmodgate.fullname" .) -}}
{{- end }}

{{- define "kmodgate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "kmodgate.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.create is false: name the account in serviceAccount.name" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "kmodgate.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kmodgate.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "kmodgate.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "kmodgate.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ printf "%s@%s" .repository .digest }}
{{- else -}}
{{ printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Target labels: which node, which pool. A pod's own name and address say nothing once it is gone. */}}
{{- define "kmodgate.relabelings" -}}
- sourceLabels: [__meta_kubernetes_pod_node_name]
  targetLabel: node
  action: replace
- sourceLabels: [__meta_kubernetes_pod_node_name]
  targetLabel: instance
  action: replace
{{- with .Values.metrics.poolLabel }}
- sourceLabels: [__meta_kubernetes_node_label_{{ regexReplaceAll "[^A-Za-z0-9_]" . "_" }}]
  targetLabel: pool
  action: replace
{{- end }}
{{- end }}

{{/* The agent's config. */}}

{{/*
The policy that a place of the values means: "" where it says nothing.
Takes a dict of `values` and of `where`, for the message.
*/}}
{{- define "kmodgate.policy" -}}
{{- $flag := get .values "enableKernelModuleSignatureEnforcement" -}}
{{- if kindIs "bool" $flag -}}
{{- ternary "ENFORCE_SIGNED_MODULES" "DO_NOT_ENFORCE_SIGNED_MODULES" $flag -}}
{{- else -}}
{{- get .values "policy" | default "" -}}
{{- end -}}
{{- end }}

{{/* Fails unless a file that is named is there. Takes `name`, `where`, `root`. */}}
{{- define "kmodgate.needFile" -}}
{{- if not (or (hasKey .root.Values.files .name) (hasKey .root.Values.binaryFiles .name)) -}}
{{- fail (printf "%s names the file %q, which is neither in files nor in binaryFiles: add it there, for instance with --set-file 'files.%s=PATH'" .where .name (replace "." "\\." .name)) -}}
{{- end -}}
{{- end }}

{{/* `trust` with its file names checked, as JSON. Takes `trust`, `where`, `root`. */}}
{{- define "kmodgate.trust" -}}
{{- $out := dict -}}
{{- range $key, $value := .trust -}}
{{- if has $key (list "certificates" "revoked" "revokedCertificates") -}}
{{- range $value -}}
{{- include "kmodgate.needFile" (dict "name" . "where" (printf "%s.%s" $.where $key) "root" $.root) -}}
{{- end -}}
{{- end -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $out $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $out -}}
{{- end }}

{{- define "kmodgate.listen" -}}
{{- $host := .Values.listenAddress -}}
{{- printf "%s:%d" (ternary (printf "[%s]" $host) $host (contains ":" $host)) (int .Values.metrics.port) -}}
{{- end }}

{{/* The whole config file, as YAML. */}}
{{- define "kmodgate.config" -}}
{{- $values := .Values -}}
{{- $ours := dict "listen" (include "kmodgate.listen" .) "logging" (dict "level" .Values.logging.level) -}}
{{- range list "mode" "failurePolicy" "nodeType" "loadPin" "pinnedRootExempt" "holdTimeout" "maxModuleSize" "preverify" "backend" "onExit" "cannotEnforce" "hardened" -}}
{{- if not (kindIs "invalid" (get $values .)) -}}
{{- $_ := set $ours . (get $values .) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $ours "kubernetes" (pick .Values.kubernetes "events" "nodeCondition") -}}
{{- with .Values.eventSinks -}}
{{- $_ := set $ours "eventSinks" . -}}
{{- end -}}
{{- with .Values.metrics.webConfig -}}
{{- if not (isAbs .) -}}
{{- include "kmodgate.needFile" (dict "name" . "where" "metrics.webConfig" "root" $) -}}
{{- end -}}
{{- $_ := set $ours "webConfig" . -}}
{{- end -}}
{{- with .Values.hardenedToken -}}
{{- $_ := set $ours "hardenedToken" . -}}
{{- end -}}
{{- with .Values.loadPinTrustedVerityDigests -}}
{{- include "kmodgate.needFile" (dict "name" . "where" "loadPinTrustedVerityDigests" "root" $) -}}
{{- $_ := set $ours "loadPinTrustedVerityDigests" . -}}
{{- end -}}
{{- $_ := set $ours "trust" (include "kmodgate.trust" (dict "trust" .Values.trust "where" "trust" "root" $) | fromJson) -}}
{{- $pools := list -}}
{{- range .Values.nodePools -}}
{{- $where := printf "nodePools (%s)" .name -}}
{{- $pool := omit . "policy" "enableKernelModuleSignatureEnforcement" "trust" -}}
{{- with include "kmodgate.policy" (dict "values" .) -}}
{{- $_ := set $pool "policy" . -}}
{{- end -}}
{{- with .trust -}}
{{- $_ := set $pool "trust" (include "kmodgate.trust" (dict "trust" . "where" (printf "%s.trust" $where) "root" $) | fromJson) -}}
{{- end -}}
{{- with .loadPinTrustedVerityDigests -}}
{{- include "kmodgate.needFile" (dict "name" . "where" (printf "%s.loadPinTrustedVerityDigests" $where) "root" $) -}}
{{- end -}}
{{- $pools = append $pools $pool -}}
{{- end -}}
{{- with $pools -}}
{{- $_ := set $ours "nodePools" . -}}
{{- end -}}
{{- $linux := dict "cgroupMode" .Values.cgroupMode "kernelModuleLoading" (dict "policy" (include "kmodgate.policy" (dict "values" .Values))) -}}
{{- toYaml (dict "linuxNodeConfig" $linux "kmodgate" $ours) -}}
{{- end }}

{{/* What the agent reads when it starts and never again: a change of it must replace the pods. */}}
{{- define "kmodgate.startOnly" -}}
{{- toJson (list (include "kmodgate.listen" .) .Values.backend .Values.onExit .Values.hardened .Values.hardenedToken .Values.kubernetes .Values.metrics.webConfig) -}}
{{- end }}

{{/* Capabilities: docs/kubernetes.md says what each is for; a test in a virtual machine takes each away. */}}
{{- define "kmodgate.capabilities" -}}
{{- $needed := list "BPF" "PERFMON" "SYS_MODULE" "SYS_PTRACE" "DAC_READ_SEARCH" -}}
{{- if .Values.hardened -}}
{{- $needed = append $needed "NET_ADMIN" -}}
{{- end -}}
{{- concat $needed .Values.extraCapabilities | uniq | toYaml -}}
{{- end }}

{{- define "kmodgate.securityContext" -}}
{{- if .Values.privileged -}}
privileged: true
{{- else -}}
privileged: false
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
  add:
    {{- include "kmodgate.capabilities" . | nindent 4 }}
{{- end }}
readOnlyRootFilesystem: true
# The kernel gives BPF and the node's /proc/1 to root; as anybody else the capabilities do not survive exec.
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
{{- if not .Values.privileged }}
seccompProfile:
  type: {{ .Values.seccomp.type }}
  {{- if eq .Values.seccomp.type "Localhost" }}
  localhostProfile: {{ required "seccomp.type is Localhost: name the profile in seccomp.localhostProfile" .Values.seccomp.localhostProfile }}
  {{- end }}
{{- end }}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}
appArmorProfile:
  type: {{ .Values.appArmor.type }}
  {{- if eq .Values.appArmor.type "Localhost" }}
  localhostProfile: {{ required "appArmor.type is Localhost: name the profile in appArmor.localhostProfile" .Values.appArmor.localhostProfile }}
  {{- end }}
{{- end }}
{{- with .Values.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What the links to runbooks begin with, without a slash at its end. */}}
{{- define "kmodgate.runbooks" -}}
{{- .Values.metrics.runbookBaseUrl | default "docs/runbooks" | trimSuffix "/" -}}
{{- end }}

{{/* AppArmor before Kubernetes 1.30. */}}
{{- define "kmodgate.appArmorAnnotation" -}}
{{- with .Values.appArmor -}}
{{- if eq .type "Localhost" -}}
localhost/{{ required "appArmor.type is Localhost: name the profile in appArmor.localhostProfile" .localhostProfile }}
{{- else -}}
{{ ternary "unconfined" "runtime/default" (eq .type "Unconfined") }}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
What the agent would refuse of one place's values: the pods that start next would not come up.
Takes `policy`, `cgroupMode`, `trust` and `where`.
*/}}
{{- define "kmodgate.checkPlace" -}}
{{- if eq .policy "ENFORCE_SIGNED_MODULES" -}}
{{- if eq .cgroupMode "CGROUP_MODE_V1" -}}
{{- fail (printf "%sENFORCE_SIGNED_MODULES does not go with CGROUP_MODE_V1: kernel module signature enforcement requires cgroup v2; set cgroupMode to CGROUP_MODE_V2 or leave it out" .where) -}}
{{- end -}}
{{- if and (eq (toString .trust.kernelKeyrings) "false") (empty .trust.certificates) -}}
{{- fail (printf "%sENFORCE_SIGNED_MODULES with trust.kernelKeyrings false and no trust.certificates trusts nothing: every module would be denied and the nodes would stop" .where) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What goes together, or not; the schema sees each value alone. */}}
{{- define "kmodgate.check" -}}
{{- $policy := include "kmodgate.policy" (dict "values" .Values) -}}
{{- include "kmodgate.checkPlace" (dict "policy" $policy "cgroupMode" .Values.cgroupMode "trust" .Values.trust "where" "") -}}
{{- $seen := dict -}}
{{- range .Values.nodePools -}}
{{- if hasKey $seen .name -}}
{{- fail (printf "nodePools: the name %q stands twice: rename one" .name) -}}
{{- end -}}
{{- $_ := set $seen .name true -}}
{{- $own := include "kmodgate.policy" (dict "values" .) | default $policy -}}
{{- $trust := merge (dict) (default (dict) .trust) $.Values.trust -}}
{{- if hasKey (default (dict) .trust) "kernelKeyrings" -}}
{{- $_ := set $trust "kernelKeyrings" .trust.kernelKeyrings -}}
{{- end -}}
{{- if hasKey (default (dict) .trust) "certificates" -}}
{{- $_ := set $trust "certificates" .trust.certificates -}}
{{- end -}}
{{- include "kmodgate.checkPlace" (dict "policy" $own "cgroupMode" (default $.Values.cgroupMode .cgroupMode) "trust" $trust "where" (printf "node pool %s: " .name)) -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled -}}
{{- fail "metrics.podMonitor and metrics.serviceMonitor would both scrape every pod: enable one of them" -}}
{{- end -}}
{{- range $name, $_ := .Values.binaryFiles -}}
{{- if hasKey $.Values.files $name -}}
{{- fail (printf "%q stands in files and in binaryFiles: remove one" $name) -}}
{{- end -}}
{{- end -}}
{{- if or (hasKey .Values.files "config.yaml") (hasKey .Values.binaryFiles "config.yaml") -}}
{{- fail "config.yaml is the name of the agent's own config: give the file in files another name" -}}
{{- end -}}
{{- if and .Values.kubernetes.nodeCondition .Values.kubernetes.ownNodeOnly (semverCompare "<1.32.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail "kubernetes.ownNodeOnly needs Kubernetes 1.32: without it every agent may patch the status of every node; set kubernetes.ownNodeOnly to false to accept that, or kubernetes.nodeCondition to false" -}}
{{- end -}}
{{- end }}
