{{- define "ecr-node-agent.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* Leaves room for the longest suffix that the templates append, in a label of 63 characters. */ -}}
{{- define "ecr-node-agent.fullname" -}}
{{- $name := include "ecr-node-agent.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "ecr-node-agent.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "ecr-node-agent.serviceAccount" -}}
{{- default (include "ecr-node-agent.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* The labels of a selector, which cannot change after the install. Takes the root context and the component. All values are
quoted: YAML reads release names such as `y`, `no`, `123` and `1e3` as booleans and numbers. */ -}}
{{- define "ecr-node-agent.selector" -}}
app.kubernetes.io/name: {{ include "ecr-node-agent.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component | quote }}
{{- end -}}

{{- define "ecr-node-agent.labels" -}}
{{- $own := include "ecr-node-agent.selector" . | fromYaml -}}
{{- $version := dict
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_")
  "app.kubernetes.io/version" (include "ecr-node-agent.tag" .root | trunc 63)
  "app.kubernetes.io/managed-by" .root.Release.Service
-}}
{{- /* The chart's own labels win: a label of the user must not take an object out of its selector. */ -}}
{{- toYaml (merge $own $version .root.Values.commonLabels) -}}
{{- end -}}

{{- /* Without the chart's version, so that a new version of the chart alone does not restart every agent. */ -}}
{{- define "ecr-node-agent.podLabels" -}}
{{- $own := include "ecr-node-agent.selector" . | fromYaml -}}
{{- toYaml (merge $own .root.Values.podLabels .root.Values.commonLabels) -}}
{{- end -}}

{{- /* Helm reads a whole number of a values file as a floating-point number, and would print a long one with an exponent. */ -}}
{{- define "ecr-node-agent.tag" -}}
{{- $tag := .Values.image.tag -}}
{{- if and (kindIs "float64" $tag) (eq (floor $tag) $tag) }}{{ $tag = int64 $tag }}{{ end -}}
{{- $tag | default .Chart.AppVersion | toString -}}
{{- end -}}

{{- define "ecr-node-agent.image" -}}
{{- $repository := .Values.image.repository | required "image.repository is needed: a checkout has no image, a published chart has one" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (include "ecr-node-agent.tag" .) -}}
{{- end -}}
{{- end -}}

{{- define "ecr-node-agent.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  {{- if kindIs "map" . }}
  - name: {{ .name | quote }}
  {{- else }}
  - name: {{ . | quote }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* Where the agent listens; empty for nowhere. Takes the root context, the port, and whether the pod is in the node's
network. */ -}}
{{- define "ecr-node-agent.listen" -}}
{{- if .root.Values.metrics.enabled -}}
{{- printf "%s:%d" .root.Values.metrics.address (int .port) -}}
{{- else if .root.Values.probes.enabled -}}
{{- if .hostNetwork -}}
{{- printf "127.0.0.1:%d" (int .port) -}}
{{- else -}}
{{- printf "0.0.0.0:%d" (int .port) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The variables of every agent. Takes the root context, the port and the network, as above. */ -}}
{{- define "ecr-node-agent.env" -}}
{{- $values := .root.Values -}}
{{- $listen := include "ecr-node-agent.listen" . -}}
{{- if contains "$(HOST_IP)" $listen }}
- name: HOST_IP
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- end }}
{{- with $listen }}
- name: ECR_NODE_AGENT_LISTEN
  value: {{ . | quote }}
{{- end }}
{{- with $values.registries }}
- name: ECR_NODE_AGENT_REGISTRY
  value: {{ join " " . | quote }}
{{- end }}
{{- with $values.aws.region }}
- name: ECR_NODE_AGENT_REGION
  value: {{ . | quote }}
{{- end }}
{{- with $values.aws.roleArn }}
- name: ECR_NODE_AGENT_ROLE_ARN
  value: {{ . | quote }}
{{- end }}
{{- /* With a webhook of EKS: a pod that the webhook missed must fail, and not use the node's role instead. */ -}}
{{- if eq $values.aws.identity "secret" }}
- name: ECR_NODE_AGENT_AWS_CREDENTIALS_DIR
  value: /etc/ecr-node-agent/aws
{{- else if eq $values.aws.identity "rolesAnywhere" }}
- name: ECR_NODE_AGENT_ROLES_ANYWHERE
  value: {{ include "ecr-node-agent.rolesAnywhere" .root | quote }}
{{- else if eq $values.aws.identity "podIdentity" }}
- name: AWS_EC2_METADATA_DISABLED
  value: "true"
{{- else if eq $values.aws.identity "irsa" }}
{{- if $values.aws.irsa.projectToken }}
- name: AWS_ROLE_ARN
  value: {{ $values.aws.irsa.roleArn | required "aws.irsa.roleArn is needed with aws.irsa.projectToken" | quote }}
- name: AWS_WEB_IDENTITY_TOKEN_FILE
  value: /var/run/secrets/ecr-node-agent/token
{{- else }}
- name: AWS_EC2_METADATA_DISABLED
  value: "true"
{{- end }}
{{- end }}
{{- if $values.schedule }}
- name: ECR_NODE_AGENT_SCHEDULE
  value: {{ $values.schedule | quote }}
{{- else }}
- name: ECR_NODE_AGENT_INTERVAL
  value: {{ $values.interval | quote }}
{{- end }}
- name: ECR_NODE_AGENT_SPREAD
  value: {{ $values.spread | quote }}
{{ include "ecr-node-agent.logEnv" .root }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* The value of --roles-anywhere. */ -}}
{{- define "ecr-node-agent.rolesAnywhere" -}}
{{- $values := .Values.aws.rolesAnywhere -}}
{{- if and (eq .Values.pullSecrets.mode "deployment") (not $values.secretName) -}}
{{- fail "aws.identity=rolesAnywhere with pullSecrets.mode=deployment needs aws.rolesAnywhere.secretName: that pod sees no file of a node" -}}
{{- end -}}
{{- if and $values.key (not $values.secretName) (ne (dir $values.key) (dir $values.certificate)) -}}
{{- fail "aws.rolesAnywhere.key must be in the directory of aws.rolesAnywhere.certificate, which is mounted" -}}
{{- end -}}
{{- $anchor := $values.trustAnchorArn | required "aws.rolesAnywhere.trustAnchorArn is needed with aws.identity=rolesAnywhere" -}}
{{- $profile := $values.profileArn | required "aws.rolesAnywhere.profileArn is needed with aws.identity=rolesAnywhere" -}}
{{- $role := $values.roleArn | required "aws.rolesAnywhere.roleArn is needed with aws.identity=rolesAnywhere" -}}
{{- $files := printf "certificate=%s" $values.certificate -}}
{{- if $values.secretName -}}
{{- $files = "certificate=/etc/ecr-node-agent/certificate/tls.crt,key=/etc/ecr-node-agent/certificate/tls.key" -}}
{{- else if $values.key -}}
{{- $files = printf "%s,key=%s" $files $values.key -}}
{{- end -}}
{{- printf "anchor=%s,profile=%s,%s,role=%s" $anchor $profile $files $role -}}
{{- end -}}

{{- /* The directory on the nodes that holds the certificate, where the agent does not see it anyway. */ -}}
{{- define "ecr-node-agent.certificateDir" -}}
{{- $values := .Values.aws.rolesAnywhere -}}
{{- $dir := dir $values.certificate -}}
{{- $isSeen := and (eq .Values.layout "direct") (hasPrefix (printf "%s/" .Values.kubelet.rootDir) $values.certificate) -}}
{{- if and (eq .Values.aws.identity "rolesAnywhere") (not $values.secretName) (not $isSeen) -}}
{{- $dir -}}
{{- end -}}
{{- end -}}

{{- define "ecr-node-agent.logEnv" -}}
- name: ECR_NODE_AGENT_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
- name: ECR_NODE_AGENT_LOG_LEVEL
  value: {{ .Values.log.level | quote }}
{{- end -}}

{{- define "ecr-node-agent.mounts" -}}
{{- if eq .Values.aws.identity "secret" }}
- name: aws-credentials
  mountPath: /etc/ecr-node-agent/aws
  readOnly: true
{{- else if and (eq .Values.aws.identity "rolesAnywhere") .Values.aws.rolesAnywhere.secretName }}
- name: certificate
  mountPath: /etc/ecr-node-agent/certificate
  readOnly: true
{{- else if and (eq .Values.aws.identity "irsa") .Values.aws.irsa.projectToken }}
- name: aws-token
  mountPath: /var/run/secrets/ecr-node-agent
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* AWS credentials are files, not variables: the kubelet updates the files of a running container when the Secret changes.
The projected token is good for AWS only, by its audience: the API server does not accept it. */ -}}
{{- define "ecr-node-agent.volumes" -}}
{{- if eq .Values.aws.identity "secret" }}
- name: aws-credentials
  secret:
    secretName: {{ .Values.aws.secret.name | quote }}
    defaultMode: 0400
    items:
      - key: {{ .Values.aws.secret.keys.accessKeyId | quote }}
        path: aws_access_key_id
      - key: {{ .Values.aws.secret.keys.secretAccessKey | quote }}
        path: aws_secret_access_key
      {{- with .Values.aws.secret.keys.sessionToken }}
      - key: {{ . | quote }}
        path: aws_session_token
      {{- end }}
{{- else if and (eq .Values.aws.identity "rolesAnywhere") .Values.aws.rolesAnywhere.secretName }}
- name: certificate
  secret:
    secretName: {{ .Values.aws.rolesAnywhere.secretName | quote }}
    defaultMode: 0400
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- else if and (eq .Values.aws.identity "irsa") .Values.aws.irsa.projectToken }}
- name: aws-token
  projected:
    defaultMode: 0400
    sources:
      - serviceAccountToken:
          audience: {{ .Values.aws.irsa.audience | quote }}
          expirationSeconds: 86400
          path: token
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* The port and the probes of a container. Takes the root context, the port and the network, as above.

The port has a name for the monitors. In the node's network it is declared so that the scheduler keeps it free of other pods.
The kubelet probes from the node's network: where that is also the pod's, loopback is enough, and nothing else reaches the port.
/healthz asks the agent's loop, which answers within 3 seconds or counts as hanging. /readyz succeeds if the credentials are in
place and valid, so a rollout of a version that does not work stops by itself. */ -}}
{{- define "ecr-node-agent.probes" -}}
{{- $listen := include "ecr-node-agent.listen" . -}}
{{- if $listen }}
ports:
  - name: metrics
    containerPort: {{ .port }}
    protocol: TCP
{{- end }}
{{- if and $listen .root.Values.probes.enabled }}
{{- $onLoopback := and .hostNetwork (regexMatch `^(127\.|0\.0\.0\.0:|\[::\]:)` $listen) }}
livenessProbe:
  httpGet:
    path: /healthz
    port: metrics
    {{- if $onLoopback }}
    host: 127.0.0.1
    {{- end }}
  periodSeconds: {{ .root.Values.probes.periodSeconds }}
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /readyz
    port: metrics
    {{- if $onLoopback }}
    host: 127.0.0.1
    {{- end }}
  periodSeconds: {{ .root.Values.probes.periodSeconds }}
  timeoutSeconds: 5
  failureThreshold: 1
{{- end }}
{{- end -}}

{{- /* The security context of every container that sees the node. The API server refuses a privileged container that may not gain
privileges. */ -}}
{{- define "ecr-node-agent.nodeSecurity" -}}
{{- $context := .Values.securityContext -}}
{{- if $context.privileged }}{{ $context = omit $context "allowPrivilegeEscalation" }}{{ end -}}
{{- toYaml $context -}}
{{- end -}}

{{- /* How a pod resolves names and what network it uses. Takes the root context and whether it is in the node's network. */ -}}
{{- define "ecr-node-agent.network" -}}
hostNetwork: {{ .hostNetwork }}
dnsPolicy: {{ .root.Values.dnsPolicy }}
{{- with .root.Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* The placement of every pod that has to be on every node. Service links would make variables of the namespace's Services,
and those of a Service called `ecr-node-agent` begin like the agent's options. */ -}}
{{- define "ecr-node-agent.everywhere" -}}
{{- include "ecr-node-agent.imagePullSecrets" . }}
priorityClassName: {{ .Values.priorityClassName | quote }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
enableServiceLinks: false
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "ecr-node-agent.pullSecretsName" -}}
{{- include "ecr-node-agent.fullname" . }}-pull-secrets
{{- end -}}

{{- /* The service account that reads and writes pull secrets. */ -}}
{{- define "ecr-node-agent.pullSecretsAccount" -}}
{{- if eq .Values.pullSecrets.mode "deployment" -}}
{{- include "ecr-node-agent.pullSecretsName" . -}}
{{- else -}}
{{- include "ecr-node-agent.serviceAccount" . -}}
{{- end -}}
{{- end -}}

{{- /* Whether the Deployment is in the node's network; empty for no. */ -}}
{{- define "ecr-node-agent.pullSecretsHostNetwork" -}}
{{- $hostNetwork := .Values.pullSecrets.deployment.hostNetwork -}}
{{- if kindIs "invalid" $hostNetwork }}{{ $hostNetwork = eq .Values.aws.identity "instanceProfile" }}{{ end -}}
{{- if $hostNetwork }}true{{ end -}}
{{- end -}}

{{- /* The namespace's level of Pod Security: the label's value, empty without the label, `unknown` without a cluster, `absent` if
there is no such namespace yet. */ -}}
{{- define "ecr-node-agent.podSecurity" -}}
{{- $namespace := lookup "v1" "Namespace" "" (include "ecr-node-agent.namespace" .) -}}
{{- if $namespace -}}
{{- dig "metadata" "labels" "pod-security.kubernetes.io/enforce" "" $namespace -}}
{{- else if lookup "v1" "Namespace" "" "default" -}}
absent
{{- else -}}
unknown
{{- end -}}
{{- end -}}

{{- /* The command that gives the namespace the level that the agents need. */ -}}
{{- define "ecr-node-agent.labelCommand" -}}
kubectl label --overwrite namespace {{ include "ecr-node-agent.namespace" . }} pod-security.kubernetes.io/enforce=privileged
{{- end -}}

{{- /* Combinations of values that cannot work. A schema could not say so in a way that is understood. */ -}}
{{- define "ecr-node-agent.check" -}}
{{- $secrets := .Values.pullSecrets -}}
{{- $onNodes := eq $secrets.mode "daemonset" -}}
{{- if not (or .Values.nodeAgent (eq $secrets.mode "deployment")) -}}
{{- fail "nodeAgent=false leaves nothing to install without pullSecrets.mode=deployment" -}}
{{- end -}}
{{- if .Values.nodeAgent -}}
{{- include "ecr-node-agent.checkNodes" . -}}
{{- if and .Values.watchLink (ne .Values.layout "linked") -}}
{{- fail "watchLink needs layout=linked: without a link there is nothing to watch" -}}
{{- end -}}
{{- else if .Values.startupTaint.enabled -}}
{{- fail "startupTaint.enabled needs nodeAgent: without an agent on the node nothing removes the taint" -}}
{{- end -}}
{{- if and .Values.metrics.enabled (regexMatch `^(127\.|\[::1\])` .Values.metrics.address) -}}
{{- fail "metrics.address is loopback, which only the node itself can reach: set metrics.enabled=false instead" -}}
{{- end -}}
{{- if and (ne $secrets.mode "none") (not (or $secrets.secrets $secrets.selector)) -}}
{{- fail "pullSecrets.mode says who keeps pull secrets: also name them in pullSecrets.secrets or pullSecrets.selector" -}}
{{- end -}}
{{- if ne (empty $secrets.selector) (empty $secrets.selectorName) -}}
{{- fail "pullSecrets.selector and pullSecrets.selectorName need each other" -}}
{{- end -}}
{{- if $onNodes -}}
{{- range $secrets.secrets -}}
{{- if regexMatch `[*?].*/` . -}}
{{- fail (printf "pullSecrets.secrets: the pattern %s needs pullSecrets.mode=deployment: nodes must not list all namespaces" .) -}}
{{- end -}}
{{- end -}}
{{- if or $secrets.selector $secrets.serviceAccounts -}}
{{- fail "pullSecrets.selector and pullSecrets.serviceAccounts need pullSecrets.mode=deployment: nodes must not have such rights" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* As above, for the agents on the nodes. */ -}}
{{- define "ecr-node-agent.checkNodes" -}}
{{- if .Capabilities.APIVersions.Has "machineconfiguration.openshift.io/v1" -}}
{{- fail "this is OpenShift, whose machine config operator owns the kubelet's config.json and marks a node degraded when another program changes it. Change the cluster's global pull secret instead, or use pull secrets alone: nodeAgent=false and pullSecrets.mode=deployment" -}}
{{- end -}}
{{- $removing := printf "%s-remove" (include "ecr-node-agent.fullname" .) -}}
{{- if and .Release.IsInstall (lookup "apps/v1" "DaemonSet" (include "ecr-node-agent.namespace" .) $removing) -}}
{{- fail (printf "the DaemonSet %s of an earlier uninstall still exists, and no agent is scheduled beside it: delete it first" $removing) -}}
{{- end -}}
{{- if and .Release.IsInstall (has (include "ecr-node-agent.podSecurity" .) (list "baseline" "restricted")) -}}
{{- fail (printf "the namespace's level of Pod Security refuses pods that mount a directory of the node: %s" (include "ecr-node-agent.labelCommand" .)) -}}
{{- end -}}
{{- if and .Values.startupTaint.enabled (semverCompare "<1.30-0" .Capabilities.KubeVersion.Version) -}}
{{- fail "startupTaint.enabled needs Kubernetes 1.30: in older clusters nothing limits an agent to its own node" -}}
{{- end -}}
{{- $surge := dig "rollingUpdate" "maxSurge" 0 .Values.updateStrategy | toString -}}
{{- $port := include "ecr-node-agent.listen" (dict "root" . "port" .Values.port "hostNetwork" .Values.hostNetwork) -}}
{{- if and .Values.hostNetwork $port (not (has $surge (list "0" "0%"))) -}}
{{- fail (printf "updateStrategy.rollingUpdate.maxSurge=%s: both agents of a node would need the node's port %d, so the new one would wait for ever. Use maxUnavailable: a node without an agent keeps its credentials. Or set probes.enabled=false without metrics, or hostNetwork=false" $surge (int .Values.port)) -}}
{{- end -}}
{{- end -}}

{{- /* A container that makes or undoes the link, or removes the agent's entries. It sees the kubelet's root directory, whatever the
layout, and its docker credentials, which a new file would hide. Takes the root context and the arguments. */ -}}
{{- define "ecr-node-agent.linking" -}}
{{- $values := .root.Values -}}
image: {{ include "ecr-node-agent.image" .root }}
imagePullPolicy: {{ $values.image.pullPolicy }}
args: {{ toJson .args }}
env:
  - name: ECR_NODE_AGENT_AUTH_FILE
    value: {{ printf "%s/config.json" $values.kubelet.rootDir | quote }}
  {{- with $values.kubelet.homeDir }}
  - name: HOME
    value: {{ . | quote }}
  {{- end }}
  {{- include "ecr-node-agent.logEnv" .root | nindent 2 }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
securityContext:
  {{- include "ecr-node-agent.nodeSecurity" .root | nindent 2 }}
volumeMounts:
  - name: kubelet
    mountPath: {{ $values.kubelet.rootDir | quote }}
    mountPropagation: HostToContainer
  {{- with $values.kubelet.homeDir }}
  - name: docker
    mountPath: {{ printf "%s/.docker" . | quote }}
    readOnly: true
  {{- end }}
{{- end -}}

{{- /* The volumes of the node's directories. `Directory`: a wrong path becomes an event of the pod, where the runtime would otherwise
make an empty directory. */ -}}
{{- define "ecr-node-agent.nodeVolumes" -}}
- name: kubelet
  hostPath:
    path: {{ .Values.kubelet.rootDir | quote }}
    type: Directory
{{- with .Values.kubelet.homeDir }}
- name: docker
  hostPath:
    path: {{ printf "%s/.docker" . | quote }}
    type: Directory
{{- end }}
{{- end -}}
