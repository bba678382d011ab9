package main

import (
	"fmt"
	"net/netip"
	"strings"
)

// The rules are kube-proxy's, without the comments and the chains that no
// packet of the measurement meets.

var iptablesServices = kernelServices{
	name: "kernel iptables", tool: []string{"iptables-restore"}, pkg: "iptables", noted: []string{"--noflush"},
	all: iptablesAll,
	change: func(i, with int) string {
		return "*nat\n" + iptablesChains(i, with) + iptablesService(i, with) + "COMMIT\n"
	},
}

var nftServices = kernelServices{
	name: "kernel nftables", tool: []string{"nft", "-f", "-"}, pkg: "nftables", noted: []string{"-f", "-"},
	all: nftAll,
	change: func(i, with int) string {
		var b strings.Builder
		for j := range endpointsEach {
			fmt.Fprintf(&b, "flush chain ip kube-proxy endpoint-%d-%d\n", i, j)
		}
		fmt.Fprintf(&b, "flush chain ip kube-proxy service-%d\n", i)
		nftService(&b, i, with)
		return b.String()
	},
}

// kernelEndpoint is endpoint j of each Service; with exchanges them.
func kernelEndpoint(j, with int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 244, 2, byte(5 + (j+with)%endpointsEach)})
}

func iptablesAll(n int) string {
	var b strings.Builder
	b.WriteString("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n")
	for i := range n {
		b.WriteString(iptablesChains(i, 0))
	}
	b.WriteString(`-A PREROUTING -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
`)
	for i := range n {
		fmt.Fprintf(&b, "-A KUBE-SERVICES -d %s/32 -p tcp -m tcp --dport %d -j KUBE-SVC-%d\n", serviceVIP(i), servicePort, i)
		b.WriteString(iptablesService(i, 0))
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func iptablesChains(i, _ int) string {
	var b strings.Builder
	fmt.Fprintf(&b, ":KUBE-SVC-%d - [0:0]\n", i)
	for j := range endpointsEach {
		fmt.Fprintf(&b, ":KUBE-SEP-%d-%d - [0:0]\n", i, j)
	}
	return b.String()
}

func iptablesService(i, with int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "-A KUBE-SVC-%d ! -s 10.244.0.0/16 -d %s/32 -p tcp -m tcp --dport %d -j KUBE-MARK-MASQ\n", i, serviceVIP(i), servicePort)
	for j := range endpointsEach {
		chance := ""
		if left := endpointsEach - j; left > 1 {
			chance = fmt.Sprintf("-m statistic --mode random --probability %.10f ", 1/float64(left))
		}
		fmt.Fprintf(&b, "-A KUBE-SVC-%d %s-j KUBE-SEP-%d-%d\n", i, chance, i, j)
		to := kernelEndpoint(j, with)
		fmt.Fprintf(&b, "-A KUBE-SEP-%d-%d -s %s/32 -j KUBE-MARK-MASQ\n", i, j, to)
		fmt.Fprintf(&b, "-A KUBE-SEP-%d-%d -p tcp -m tcp -j DNAT --to-destination %s:%d\n", i, j, to, servicePort)
	}
	return b.String()
}

func nftAll(n int) string {
	var b strings.Builder
	b.WriteString(`add table ip kube-proxy
add chain ip kube-proxy mark-for-masquerade
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add chain ip kube-proxy services
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority dstnat ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority srcnat ; }
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nat-postrouting mark and 0x4000 != 0 masquerade fully-random
`)
	for i := range n {
		for j := range endpointsEach {
			fmt.Fprintf(&b, "add chain ip kube-proxy endpoint-%d-%d\n", i, j)
		}
		fmt.Fprintf(&b, "add chain ip kube-proxy service-%d\n", i)
		nftService(&b, i, 0)
		fmt.Fprintf(&b, "add element ip kube-proxy service-ips { %s . tcp . %d : goto service-%d }\n", serviceVIP(i), servicePort, i)
	}
	return b.String()
}

func nftService(b *strings.Builder, i, with int) {
	fmt.Fprintf(b, "add rule ip kube-proxy service-%d ip saddr != 10.244.0.0/16 jump mark-for-masquerade\n", i)
	fmt.Fprintf(b, "add rule ip kube-proxy service-%d numgen random mod %d vmap {", i, endpointsEach)
	for j := range endpointsEach {
		if j > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(b, " %d : goto endpoint-%d-%d", j, i, j)
	}
	b.WriteString(" }\n")
	for j := range endpointsEach {
		to := kernelEndpoint(j, with)
		fmt.Fprintf(b, "add rule ip kube-proxy endpoint-%d-%d ip saddr %s jump mark-for-masquerade\n", i, j, to)
		fmt.Fprintf(b, "add rule ip kube-proxy endpoint-%d-%d meta l4proto tcp dnat to %s:%d\n", i, j, to, servicePort)
	}
}
