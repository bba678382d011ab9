#!/bin/sh
# A virtual machine as a pod, by software emulation, in half a minute: a kernel and
# busybox get addresses by DHCP and router advertisements, ping the pod of
# pods.yaml, and fetch a page from its Service. To be run while an instance with
# pods.yaml is up:
#
#   apt-get install -y qemu-system-x86 busybox-static cpio
#   apt-get download linux-image-6.1.0-56-cloud-amd64 && dpkg -x linux-image-*.deb kernel
#   podgate up --detach examples/vm
#   examples/vm/try.sh kernel stream      # or dgram
set -e
kernel=$1 kind=${2:-stream}
if ! ls "$kernel"/boot/vmlinuz-* >/dev/null; then
	echo "usage: $0 DIRECTORY [stream|dgram]; in DIRECTORY a kernel package is unpacked" >&2
	exit 2
fi
dir=$(mktemp -d)
trap 'podgate detach vm >/dev/null; rm -rf "$dir"' EXIT

mkdir -p "$dir"/tree/bin "$dir"/tree/modules "$dir"/tree/proc "$dir"/tree/etc
cp "$(command -v busybox)" "$dir"/tree/bin/busybox
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net"
for m in $modules; do
	find "$kernel" -name "$m.ko" -exec cp {} "$dir"/tree/modules/ \;
done
cat >"$dir"/tree/init <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
for again in 1 2 3; do # whatever their order is
	for m in /modules/*.ko; do insmod $m 2>/dev/null; done
done
cat >/lease <<'LEASE'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
echo nameserver $dns >/etc/resolv.conf
echo "lease: $ip/$mask, router $router, DNS $dns, search $search"
LEASE
chmod +x /lease
ip link set lo up
ip link set eth0 up
udhcpc -q -n -i eth0 -s /lease
for second in 1 2 3 4 5 6 7 8 9 10; do # a router's answer, and that nobody else has the address
	ip -6 addr show dev eth0 | grep global | grep -v tentative && break
	sleep 1
done
for a in $(sed 's/.*pods=\([^ ]*\).*/\1/; s/,/ /g' /proc/cmdline); do ping -c 2 $a; done
# busybox-static cannot look names up by itself.
ip=$(nslookup api.default.svc.cluster.local | sed -n 's/^Address: \([0-9.]*\)$/\1/p')
wget -q -O - http://$ip/ && echo "the Service api is at $ip"
poweroff -f
INIT
chmod +x "$dir"/tree/init
(cd "$dir"/tree && find . | cpio -o -H newc --quiet | gzip) >"$dir"/initrd

podgate attach vm --socket "$kind:$dir/vm.sock" >"$dir"/said
card=$(sed -n 's/^for QEMU: //p' "$dir"/said)
pods=$(podgate get pod api -o json | sed -n '/"podIPs"/,/]/s/.*"ip": "\(.*\)".*/\1/p' | paste -s -d ,)
qemu-system-x86_64 -accel tcg -M q35 -m 192 -nographic -no-reboot \
	-kernel "$kernel"/boot/vmlinuz-* -initrd "$dir"/initrd -append "console=ttyS0 quiet panic=-1 pods=$pods" $card </dev/null
