{{- define "ecr-node-agent.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* Short enough for what is appended to it, as `-pull-secrets`. */ -}}
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

{{- define "ecr-node-agent.serviceAccount" -}}
{{- default (include "ecr-node-agent.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* What never changes as long as the release lives. Takes the root context and the component. */ -}}
{{- define "ecr-node-agent.selector" -}}
app.kubernetes.io/name: {{ include "ecr-node-agent.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "ecr-node-agent.labels" -}}
{{- $own := include "ecr-node-agent.selector" . | fromYaml -}}
{{- $version := dict
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_")
  "app.kubernetes.io/version" (.root.Values.image.tag | default .root.Chart.AppVersion | trunc 63 | toString)
  "app.kubernetes.io/managed-by" .root.Release.Service
-}}
{{- /* Ours first: a label of the user's must not take an object out of its selector. */ -}}
{{- toYaml (merge $own $version .root.Values.commonLabels) -}}
{{- end -}}

{{- /* Without the chart's version, so that a new chart alone does not restart every agent. */ -}}
{{- define "ecr-node-agent.podLabels" -}}
{{- $own := include "ecr-node-agent.selector" . | fromYaml -}}
{{- toYaml (merge $own .root.Values.podLabels .root.Values.commonLabels) -}}
{{- end -}}

{{- define "ecr-node-agent.image" -}}
{{- $repository := .Values.image.repository | required "image.repository is needed: a checkout has no image, a published chart has one" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* Where the agent listens, if anywhere. Takes the root context, the port, and whether the pod is in the node's network. */ -}}
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

{{- /* What is the same for the agent wherever it runs. Takes the root context, the port and the network, as above. */ -}}
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
{{- if eq $values.aws.identity "secret" }}
- name: ECR_NODE_AGENT_AWS_CREDENTIALS_DIR
  value: /etc/ecr-node-agent/aws
{{- else if eq $values.aws.identity "rolesAnywhere" }}
- name: ECR_NODE_AGENT_ROLES_ANYWHERE
  value: {{ include "ecr-node-agent.rolesAnywhere" .root | quote }}
{{- else if eq $values.aws.identity "podIdentity" }}
# The webhook of EKS fills in the rest. A pod that it missed has no identity, rather than the node's.
- name: AWS_EC2_METADATA_DISABLED
  value: "true"
{{- else if eq $values.aws.identity "irsa" }}
{{- if $values.aws.irsa.projectToken }}
- name: AWS_ROLE_ARN
  value: {{ $values.aws.irsa.roleArn | required "aws.irsa.roleArn is needed with aws.irsa.projectToken" | quote }}
- name: AWS_WEB_IDENTITY_TOKEN_FILE
  value: /var/run/secrets/ecr-node-agent/token
{{- else }}
# The webhook of EKS fills in the rest. A pod that it missed has no identity, rather than the node's.
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
- name: ECR_NODE_AGENT_LOG_FORMAT
  value: {{ $values.log.format | quote }}
- name: ECR_NODE_AGENT_LOG_LEVEL
  value: {{ $values.log.level | quote }}
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

{{- define "ecr-node-agent.volumes" -}}
{{- if eq .Values.aws.identity "secret" }}
# As files, not variables: the kubelet brings a rotated Secret into the running container, and the agent reads it anew.
- name: aws-credentials
  secret:
    secretName: {{ .Values.aws.secret.name }}
    defaultMode: 0400
    items:
      - key: {{ .Values.aws.secret.keys.accessKeyId }}
        path: aws_access_key_id
      - key: {{ .Values.aws.secret.keys.secretAccessKey }}
        path: aws_secret_access_key
      {{- with .Values.aws.secret.keys.sessionToken }}
      - key: {{ . }}
        path: aws_session_token
      {{- end }}
{{- else if and (eq .Values.aws.identity "rolesAnywhere") .Values.aws.rolesAnywhere.secretName }}
# The directory of the Secret is mounted, so that a renewed certificate comes into the running container.
- name: certificate
  secret:
    secretName: {{ .Values.aws.rolesAnywhere.secretName }}
    defaultMode: 0400
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- else if and (eq .Values.aws.identity "irsa") .Values.aws.irsa.projectToken }}
# Good for AWS alone, by its audience: the API server does not take it.
- name: aws-token
  projected:
    defaultMode: 0400
    sources:
      - serviceAccountToken:
          audience: {{ .Values.aws.irsa.audience }}
          expirationSeconds: 86400
          path: token
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* The port and the probes of a container. Takes the root context, the port and the network, as above. */ -}}
{{- define "ecr-node-agent.probes" -}}
{{- $listen := include "ecr-node-agent.listen" . -}}
{{- if $listen }}
ports:
  # Named for the PodMonitor. In the node's network it is the node's port, and declared so that the scheduler sees to it
  # that nothing else there asks for it.
  - name: metrics
    containerPort: {{ .port }}
    protocol: TCP
{{- end }}
{{- if and $listen .root.Values.probes.enabled }}
{{- $onLoopback := and .hostNetwork (regexMatch `^(127\.|0\.0\.0\.0:|\[::\]:)` $listen) }}
# Asks the loop itself, so that one that hangs is restarted. It answers within 3 seconds or says that it cannot.
livenessProbe:
  httpGet:
    path: /healthz
    port: metrics
    {{- if $onLoopback }}
    # The kubelet probes from the node's network, which is the pod's: nobody else needs to reach this.
    host: 127.0.0.1
    {{- end }}
  periodSeconds: {{ .root.Values.probes.periodSeconds }}
  timeoutSeconds: 5
  failureThreshold: 3
# Ready means: the credentials are in place and good. So a rollout of something that does not work stops by itself.
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

{{- /* Of every container that writes to the node. */ -}}
{{- define "ecr-node-agent.nodeSecurity" -}}
# Root, because the file and the kubelet's directory are root's, and for root alone.
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
readOnlyRootFilesystem: true
{{- if .Values.security.privileged }}
privileged: true
{{- else }}
privileged: false
allowPrivilegeEscalation: false
# Root without capabilities is an ordinary owner of its files, and needs to be no more.
capabilities:
  drop: [ALL]
  {{- with .Values.security.capabilities }}
  add:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
seccompProfile:
  {{- toYaml .Values.security.seccompProfile | nindent 2 }}
{{- with .Values.security.seLinuxType }}
# The kubelet's directory has a type that an ordinary container may not write to.
seLinuxOptions:
  type: {{ . }}
{{- end }}
{{- end -}}

{{- /* Of every pod that must be on every node. */ -}}
{{- define "ecr-node-agent.everywhere" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
# Scheduled before and evicted after what needs it to be pulled.
priorityClassName: {{ .Values.priorityClassName }}
{{- with .Values.tolerations }}
# Also nodes that are not ready, under pressure or of the control plane pull images.
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
# Services of this namespace would make variables, and those of one called `ecr-node-agent` begin as our options' do.
enableServiceLinks: false
{{- end -}}

{{- define "ecr-node-agent.pullSecretsName" -}}
{{- include "ecr-node-agent.fullname" . }}-pull-secrets
{{- end -}}

{{- /* Whose rights on the API server the pull secrets take. */ -}}
{{- define "ecr-node-agent.pullSecretsAccount" -}}
{{- if eq .Values.pullSecrets.mode "deployment" -}}
{{- include "ecr-node-agent.pullSecretsName" . -}}
{{- else -}}
{{- include "ecr-node-agent.serviceAccount" . -}}
{{- end -}}
{{- end -}}

{{- /* Values that cannot be meant together, and that a schema cannot say so that one understands it. */ -}}
{{- define "ecr-node-agent.check" -}}
{{- $secrets := .Values.pullSecrets -}}
{{- $onNodes := eq $secrets.mode "daemonset" -}}
{{- $removing := printf "%s-remove" (include "ecr-node-agent.fullname" .) -}}
{{- if and .Release.IsInstall (lookup "apps/v1" "DaemonSet" .Release.Namespace $removing) -}}
{{- fail (printf "the DaemonSet %s of an earlier uninstall is still there, and no agent starts beside it: delete it first" $removing) -}}
{{- end -}}
{{- if not (or .Values.nodeAgent (eq $secrets.mode "deployment")) -}}
{{- fail "nodeAgent=false leaves nothing to install without pullSecrets.mode=deployment" -}}
{{- end -}}
{{- if and .Values.metrics.enabled (regexMatch `^(127\.|\[::1\])` .Values.metrics.address) -}}
{{- fail "metrics.address is loopback, which nobody but the node itself reaches: leave metrics.enabled at false for that" -}}
{{- end -}}
{{- if and (ne $secrets.mode "none") (not (or $secrets.secrets $secrets.selector)) -}}
{{- fail "pullSecrets.mode names who keeps pull secrets: name them, too, in pullSecrets.secrets or pullSecrets.selector" -}}
{{- end -}}
{{- if ne (empty $secrets.selector) (empty $secrets.selectorName) -}}
{{- fail "pullSecrets.selector and pullSecrets.selectorName belong together" -}}
{{- end -}}
{{- if $onNodes -}}
{{- range $secrets.secrets -}}
{{- if regexMatch `[*?].*/` . -}}
{{- fail (printf "pullSecrets.secrets: the pattern %s needs pullSecrets.mode=deployment: nodes must not list all namespaces" .) -}}
{{- end -}}
{{- end -}}
{{- if or $secrets.selector $secrets.serviceAccounts -}}
{{- fail "pullSecrets.selector and pullSecrets.serviceAccounts need pullSecrets.mode=deployment: nodes must not hold such rights" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A container that removes. Takes the root context and the arguments. */ -}}
{{- define "ecr-node-agent.removing" -}}
{{- $values := .root.Values -}}
image: {{ include "ecr-node-agent.image" .root }}
imagePullPolicy: {{ $values.image.pullPolicy }}
args: {{ toJson .args }}
env:
  - name: ECR_NODE_AGENT_AUTH_FILE
    value: {{ printf "%s/config.json" $values.kubelet.rootDir | quote }}
  {{- with $values.kubelet.homeDir }}
  # What came along from there is left to it again.
  - name: HOME
    value: {{ . | quote }}
  {{- end }}
  - name: ECR_NODE_AGENT_LOG_FORMAT
    value: {{ $values.log.format | quote }}
  - name: ECR_NODE_AGENT_LOG_LEVEL
    value: {{ $values.log.level | quote }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
securityContext:
  {{- include "ecr-node-agent.nodeSecurity" .root | nindent 2 }}
volumeMounts:
  # The kubelet's root itself, whatever the layout: a link is undone, too.
  - name: kubelet
    mountPath: {{ $values.kubelet.rootDir }}
    mountPropagation: HostToContainer
  {{- with $values.kubelet.homeDir }}
  - name: docker
    mountPath: {{ . }}/.docker
    readOnly: true
  {{- end }}
{{- end -}}
