#!/usr/bin/env bash
# A node without root: containerd, runc and a kubelet in a user namespace of yours,
# their network made by the podgate gateway that you run outside. See README.md.
#
#   ./node.sh DIR
#
# DIR has bin/ (containerd, kubelet, podgate-cni, loopback and what containerd
# starts, unless they are in PATH), node.env, kubelet.kubeconfig and images.tar; what
# the node writes goes there too. It runs until it is told to end, and all in it
# ends with it.
set -euo pipefail

dir=$(realpath "$1")
if [ "${2-}" != inside ]; then
	# The whole of /etc/subuid's range: images have users other than root.
	exec unshare --user --map-root-user --map-auto --mount --net --uts --pid --fork --kill-child --mount-proc \
		--propagation private "$(realpath "$0")" "$dir" inside
fi

. "$dir/node.env" # NODE, NODE_IP, SOCKET, CLUSTER_DNS
export PATH=$dir/bin:$PATH XDG_RUNTIME_DIR=$dir/run
mount --make-rshared /
hostname "$NODE"
ip link set lo up
mkdir -p "$dir"/{etc,kubelet,containerd,logs,run}
for d in /run /var/lib /var/log; do mount -t tmpfs tmpfs "$d"; done # what root's programs write by default
mkdir -p /run/netns /var/lib/kubelet
mount --bind "$dir/kubelet" /var/lib/kubelet

# What the runtime tells the plugin: the same for the node itself and for pods.
cat >"$dir/etc/10-podgate.conflist" <<END
{"cniVersion": "1.0.0", "name": "podnet", "plugins": [
  {"type": "podgate-cni", "socket": "$SOCKET", "capabilities": {"portMappings": true}}
]}
END
plugin() { # COMMAND, further fields of the configuration
	CNI_NETNS_OVERRIDE=true CNI_COMMAND=$1 CNI_CONTAINERID=node CNI_NETNS=/run/netns/node CNI_IFNAME=eth0 CNI_PATH=$dir/bin \
		CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=$NODE" podgate-cni \
		<<<"{\"cniVersion\": \"1.1.0\", \"name\": \"podnet\", \"type\": \"podgate-cni\", \"socket\": \"$SOCKET\"${2-}}"
}

# The node's own network namespace is attached as a pod is: so the kubelet reaches
# the API server and its probes the pods, and the API server the kubelet, at a port
# of the host.
touch /run/netns/node
mount --bind /proc/self/ns/net /run/netns/node
plugin DEL
plugin ADD ", \"runtimeConfig\": {\"ips\": [\"$NODE_IP/24\"], \"portMappings\": [{\"hostPort\": 10250, \"containerPort\": 10250, \"protocol\": \"tcp\"}]}"

cat >"$dir/etc/containerd.toml" <<END
version = 2
root = "$dir/containerd"
state = "/run/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  disable_apparmor = true
  disable_cgroup = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$dir/bin"
    conf_dir = "$dir/etc"
END
containerd --config "$dir/etc/containerd.toml" >"$dir/logs/containerd.log" 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.2; done
ctr -n k8s.io images import "$dir/images.tar"

: >"$dir/etc/resolv.conf"
cat >"$dir/etc/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
featureGates: {KubeletInUserNamespace: true}
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
oomScoreAdj: 0
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [$CLUSTER_DNS]
clusterDomain: cluster.local
resolvConf: $dir/etc/resolv.conf
podLogsDir: $dir/logs/pods
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failSwapOn: false
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}
END
kubelet --config "$dir/etc/kubelet.yaml" --kubeconfig "$dir/kubelet.kubeconfig" \
	--hostname-override "$NODE" --node-ip "$NODE_IP" >"$dir/logs/kubelet.log" 2>&1 &

# A gateway that was started again gets the interfaces from the plugin: it cannot
# open them itself, from outside.
while sleep 2; do plugin STATUS >/dev/null || true; done
