package kube

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestClusterNetworkPolicyValidation has a case for each marker of the API
// (policy.networking.k8s.io/v1alpha2, experimental channel), at its bounds.
func TestClusterNetworkPolicyValidation(t *testing.T) {
	policy := func(spec string) string {
		return "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: " + spec
	}
	with := func(rest string) string {
		return policy("{tier: Admin, priority: 1, subject: {namespaces: {}}, " + rest + "}")
	}
	subject := func(s string) string { return policy("{tier: Admin, priority: 1, subject: " + s + "}") }
	ingress := func(rule string) string { return with("ingress: [" + rule + "]") }
	egress := func(rule string) string { return with("egress: [" + rule + "]") }
	to := func(peer string) string { return egress("{action: Accept, to: [" + peer + "]}") }
	from := func(peer string) string { return ingress("{action: Deny, from: [" + peer + "]}") }
	protocol := func(p string) string {
		return egress("{action: Accept, to: [{namespaces: {}}], protocols: [" + p + "]}")
	}
	times := func(n int, format string) string {
		var all []string
		for i := range n {
			if strings.Contains(format, "%d") {
				all = append(all, fmt.Sprintf(format, i))
			} else {
				all = append(all, format)
			}
		}
		return "[" + strings.Join(all, ", ") + "]"
	}
	const rule = "{action: Pass, from: [{namespaces: {}}]}"
	const out = "{action: Pass, to: [{namespaces: {}}]}"

	for _, c := range []struct{ name, in, want string }{
		{"tier Admin", subject("{namespaces: {}}"), ""},
		{"tier Baseline", policy("{tier: Baseline, priority: 0, subject: {namespaces: {}}}"), ""},
		{"tier missing", policy("{priority: 0, subject: {namespaces: {}}}"), `spec.tier: Required value`},
		{"tier of another name", policy("{tier: NetworkPolicy, priority: 0, subject: {namespaces: {}}}"), `spec.tier: Unsupported value: "NetworkPolicy": supported values: "Admin", "Baseline"`},
		{"priority highest", policy("{tier: Admin, priority: 1000, subject: {namespaces: {}}}"), ""},
		{"priority too high", policy("{tier: Admin, priority: 1001, subject: {namespaces: {}}}"), "spec.priority: Invalid value: 1001: must be between 0 and 1000, inclusive"},
		{"priority negative", policy("{tier: Admin, priority: -1, subject: {namespaces: {}}}"), "spec.priority: Invalid value: -1: must be between 0 and 1000, inclusive"},

		{"subject pods", subject("{pods: {namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}}"), ""},
		{"subject pods without namespaceSelector", subject("{pods: {podSelector: {}}}"), ""},
		{"subject empty", subject("{}"), "spec.subject: Required value: exactly one field must be set"},
		{"subject missing", policy("{tier: Admin, priority: 1}"), "spec.subject: Required value: exactly one field must be set"},
		{"subject both", subject("{namespaces: {}, pods: {podSelector: {}}}"), "spec.subject: Forbidden: exactly one field must be set"},
		{"subject selector", subject("{namespaces: {matchExpressions: [{key: a, operator: Like}]}}"), "spec.subject.namespaces.matchExpressions[0].operator: Invalid value: \"Like\": not a valid selector operator"},
		{"subject pod selector", subject("{pods: {podSelector: {matchExpressions: [{key: a, operator: In}]}}}"), "spec.subject.pods.podSelector.matchExpressions[0].values: Required value"},
		{"subject namespace selector", subject("{pods: {namespaceSelector: {matchLabels: {a: '-'}}, podSelector: {}}}"), "spec.subject.pods.namespaceSelector.matchLabels: Invalid value"},

		{"25 ingress rules", with("ingress: " + times(25, rule)), ""},
		{"26 ingress rules", with("ingress: " + times(26, rule)), "spec.ingress: Too many: 26: must have at most 25 items"},
		{"25 egress rules", with("egress: " + times(25, out)), ""},
		{"26 egress rules", with("egress: " + times(26, out)), "spec.egress: Too many: 26: must have at most 25 items"},
		{"no rules", with("ingress: [], egress: []"), ""},

		{"rule name of 100", ingress("{name: '" + strings.Repeat("\u00e4", 100) + "', action: Deny, from: [{namespaces: {}}]}"), ""},
		{"rule name of 101", ingress("{name: " + strings.Repeat("a", 101) + ", action: Deny, from: [{namespaces: {}}]}"), "spec.ingress[0].name: Too long: may not be more than 100"},
		{"egress rule name of 101", egress("{name: " + strings.Repeat("a", 101) + ", action: Deny, to: [{namespaces: {}}]}"), "spec.egress[0].name: Too long: may not be more than 100"},
		{"action missing", ingress("{from: [{namespaces: {}}]}"), "spec.ingress[0].action: Required value"},
		{"action of v1alpha1", egress("{action: Allow, to: [{namespaces: {}}]}"), `spec.egress[0].action: Unsupported value: "Allow": supported values: "Accept", "Deny", "Pass"`},
		{"action in lower case", ingress("{action: deny, from: [{namespaces: {}}]}"), `spec.ingress[0].action: Unsupported value: "deny"`},

		{"from missing", ingress("{action: Deny}"), "spec.ingress[0].from: Required value: must contain at least one item"},
		{"from empty", ingress("{action: Deny, from: []}"), "spec.ingress[0].from: Required value: must contain at least one item"},
		{"to missing", egress("{action: Deny}"), "spec.egress[0].to: Required value: must contain at least one item"},
		{"25 peers", egress("{action: Deny, to: " + times(25, "{namespaces: {}}") + "}"), ""},
		{"26 peers", egress("{action: Deny, to: " + times(26, "{namespaces: {}}") + "}"), "spec.egress[0].to: Too many: 26: must have at most 25 items"},
		{"26 sources", ingress("{action: Deny, from: " + times(26, "{namespaces: {}}") + "}"), "spec.ingress[0].from: Too many: 26: must have at most 25 items"},

		{"from pods", from("{pods: {podSelector: {}}}"), ""},
		{"source of nothing", from("{}"), "spec.ingress[0].from[0]: Required value: exactly one field must be set"},
		{"source of two kinds", from("{namespaces: {}, pods: {podSelector: {}}}"), "spec.ingress[0].from[0]: Forbidden: exactly one field must be set"},
		{"source selector", from("{namespaces: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}"), "spec.ingress[0].from[0].namespaces.matchExpressions[0].values: Forbidden"},
		{"peer of nothing", to("{}"), "spec.egress[0].to[0]: Required value: exactly one field must be set"},
		{"peer of two kinds", to("{nodes: {}, networks: [10.0.0.0/8]}"), "spec.egress[0].to[0]: Forbidden: exactly one field must be set"},
		{"nodes", to("{nodes: {}}"), ""},
		{"nodes selector", to("{nodes: {matchExpressions: [{key: a, operator: In, values: []}]}}"), "spec.egress[0].to[0].nodes.matchExpressions[0].values: Required value"},

		{"networks of both families", to("{networks: [10.0.0.1/8, 'fd00::/8', 0.0.0.0/0, '::/0']}"), ""},
		{"no networks", to("{networks: []}"), "spec.egress[0].to[0].networks: Required value: must contain at least one item"},
		{"25 networks", to("{networks: " + times(25, "10.%d.0.0/16") + "}"), ""},
		{"26 networks", to("{networks: " + times(26, "10.%d.0.0/16") + "}"), "spec.egress[0].to[0].networks: Too many: 26: must have at most 25 items"},
		{"network without length", to("{networks: [10.0.0.1]}"), `spec.egress[0].to[0].networks[0]: Invalid value: "10.0.0.1": Invalid CIDR format provided`},
		{"network too long", to("{networks: [10.0.0.0/33]}"), `spec.egress[0].to[0].networks[0]: Invalid value: "10.0.0.0/33": Invalid CIDR format provided`},
		{"network mapped", to("{networks: ['::ffff:10.0.0.0/104']}"), "Invalid CIDR format provided"},
		{"network twice", to("{networks: [10.0.0.0/8, 10.0.0.0/8]}"), `spec.egress[0].to[0].networks[1]: Duplicate value: "10.0.0.0/8"`},

		{"domain names", to("{domainNames: [example.com, '*.example.com', www.Example.com., a-1.b, _dmarc.example.com]}"), ""},
		{"no domain names", to("{domainNames: []}"), "spec.egress[0].to[0].domainNames: Required value: must contain at least one item"},
		{"26 domain names", to("{domainNames: " + times(26, "n%d.example.com") + "}"), "spec.egress[0].to[0].domainNames: Too many: 26: must have at most 25 items"},
		{"domain name of one label", to("{domainNames: [com]}"), `spec.egress[0].to[0].domainNames[0]: Invalid value: "com"`},
		{"domain name, wildcard alone", to("{domainNames: ['*']}"), `spec.egress[0].to[0].domainNames[0]: Invalid value: "*"`},
		{"domain name, wildcard of one label", to("{domainNames: ['*.com']}"), `spec.egress[0].to[0].domainNames[0]: Invalid value: "*.com"`},
		{"domain name, wildcard inside", to("{domainNames: [a.*.com]}"), `spec.egress[0].to[0].domainNames[0]: Invalid value: "a.*.com"`},
		{"domain name, partial wildcard", to("{domainNames: ['w*.example.com']}"), `spec.egress[0].to[0].domainNames[0]: Invalid value`},
		{"domain name, empty label", to("{domainNames: [a..com]}"), `spec.egress[0].to[0].domainNames[0]: Invalid value`},
		{"domain name, hyphen at the end", to("{domainNames: [a-.com]}"), `spec.egress[0].to[0].domainNames[0]: Invalid value`},
		{"domain name twice", to("{domainNames: [a.com, a.com]}"), `spec.egress[0].to[0].domainNames[1]: Duplicate value: "a.com"`},
		{"domain name of Deny", egress("{action: Deny, to: [{domainNames: [a.com]}]}"), "spec.egress[0].to[0].domainNames: Forbidden: domainNames is only supported for Accept rules"},
		{"domain name of Pass", egress("{action: Pass, to: [{domainNames: [a.com]}]}"), "spec.egress[0].to[0].domainNames: Forbidden: domainNames is only supported for Accept rules"},

		{"protocols", protocol("{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 65535}}}}, {sctp: {destinationPort: {number: 65535}}}, {destinationNamedPort: http}"), ""},
		{"no protocols", egress("{action: Accept, to: [{namespaces: {}}], protocols: []}"), "spec.egress[0].protocols: Required value: must contain at least one item"},
		{"25 protocols", egress("{action: Accept, to: [{namespaces: {}}], protocols: " + times(25, "{tcp: {destinationPort: {number: 1%d}}}") + "}"), ""},
		{"26 protocols", ingress("{action: Accept, from: [{namespaces: {}}], protocols: " + times(26, "{tcp: {destinationPort: {number: 1%d}}}") + "}"), "spec.ingress[0].protocols: Too many: 26: must have at most 25 items"},
		{"protocol of nothing", protocol("{}"), "spec.egress[0].protocols[0]: Required value: exactly one field must be set"},
		{"protocol of two", protocol("{tcp: {destinationPort: {number: 80}}, udp: {destinationPort: {number: 80}}}"), "spec.egress[0].protocols[0]: Forbidden: exactly one field must be set"},
		{"protocol with a name too", protocol("{tcp: {destinationPort: {number: 80}}, destinationNamedPort: http}"), "spec.egress[0].protocols[0]: Forbidden: exactly one field must be set"},
		{"tcp of nothing", protocol("{tcp: {}}"), "spec.egress[0].protocols[0].tcp: Invalid value: \"\": should have at least 1 properties"},
		{"udp of nothing", protocol("{udp: {}}"), "spec.egress[0].protocols[0].udp: Invalid value: \"\": should have at least 1 properties"},
		{"sctp of nothing", protocol("{sctp: {}}"), "spec.egress[0].protocols[0].sctp: Invalid value: \"\": should have at least 1 properties"},
		{"port of nothing", protocol("{tcp: {destinationPort: {}}}"), "spec.egress[0].protocols[0].tcp.destinationPort: Required value: exactly one field must be set"},
		{"port of two", protocol("{tcp: {destinationPort: {number: 80, range: {start: 1, end: 2}}}}"), "spec.egress[0].protocols[0].tcp.destinationPort: Forbidden: exactly one field must be set"},
		{"port too high", protocol("{udp: {destinationPort: {number: 65536}}}"), "spec.egress[0].protocols[0].udp.destinationPort.number: Invalid value: 65536: must be between 1 and 65535, inclusive"},
		{"port negative", protocol("{sctp: {destinationPort: {number: -1}}}"), "spec.egress[0].protocols[0].sctp.destinationPort.number: Invalid value: -1: must be between 1 and 65535, inclusive"},
		{"range of one", protocol("{tcp: {destinationPort: {range: {start: 80, end: 80}}}}"), `spec.egress[0].protocols[0].tcp.destinationPort.range: Invalid value: "80-80": Start port must be less than End port`},
		{"range backwards", protocol("{tcp: {destinationPort: {range: {start: 81, end: 80}}}}"), "Start port must be less than End port"},
		{"range from 0", protocol("{tcp: {destinationPort: {range: {start: 0, end: 80}}}}"), "spec.egress[0].protocols[0].tcp.destinationPort.range.start: Invalid value: 0: must be between 1 and 65535, inclusive"},
		{"range too far", protocol("{tcp: {destinationPort: {range: {start: 1, end: 65536}}}}"), "spec.egress[0].protocols[0].tcp.destinationPort.range.end: Invalid value: 65536: must be between 1 and 65535, inclusive"},

		{"named port to pods", egress("{action: Deny, to: [{pods: {podSelector: {}}}], protocols: [{destinationNamedPort: http}]}"), ""},
		{"named port from pods", ingress("{action: Deny, from: [{pods: {podSelector: {}}}], protocols: [{destinationNamedPort: http}]}"), ""},
		{"named port to networks", egress("{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]}"), "spec.egress[0].to[0]: Forbidden: networks/nodes/domainNames peer cannot be set with namedPorts"},
		{"named port to nodes", egress("{action: Deny, to: [{namespaces: {}}, {nodes: {}}], protocols: [{tcp: {destinationPort: {number: 1}}}, {destinationNamedPort: http}]}"), "spec.egress[0].to[1]: Forbidden: networks/nodes/domainNames peer cannot be set with namedPorts"},
		{"named port to domain names", egress("{action: Accept, to: [{domainNames: [a.com]}], protocols: [{destinationNamedPort: http}]}"), "spec.egress[0].to[0]: Forbidden: networks/nodes/domainNames peer cannot be set with namedPorts"},
	} {
		t.Run(c.name, func(t *testing.T) { validates(t, c.in, c.want) })
	}
}

// The policies of v1alpha1 are read as ClusterNetworkPolicies.
func TestAdminNetworkPolicyIsConverted(t *testing.T) {
	objs := load(t, `
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: p}
spec:
  priority: 7
  subject: {namespaces: {matchLabels: {a: b}}}
  ingress:
  - {name: first, action: Allow, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {c: d}}}}], ports: [{portNumber: {port: 80}}, {portRange: {protocol: UDP, start: 5, end: 6}}, {namedPort: http}, {portNumber: {protocol: SCTP, port: 9}}]}
  - {action: Pass, from: [{namespaces: {}}]}
  egress:
  - {action: Deny, to: [{networks: [10.0.0.0/8]}, {nodes: {}}]}
  - {action: Allow, to: [{domainNames: [a.com]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec:
  subject: {pods: {namespaceSelector: {}, podSelector: {}}}
  ingress: [{action: Deny, from: [{namespaces: {}}]}]
`)
	want := load(t, `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: p.adminnetworkpolicy, annotations: {podgate.dev/converted-from: AdminNetworkPolicy}}
spec:
  tier: Admin
  priority: 7
  subject: {namespaces: {matchLabels: {a: b}}}
  ingress:
  - {name: first, action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {c: d}}}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 5, end: 6}}}}, {destinationNamedPort: http}, {sctp: {destinationPort: {number: 9}}}]}
  - {action: Pass, from: [{namespaces: {}}]}
  egress:
  - {action: Deny, to: [{networks: [10.0.0.0/8]}, {nodes: {}}]}
  - {action: Accept, to: [{domainNames: [a.com]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: default.baselineadminnetworkpolicy, annotations: {podgate.dev/converted-from: BaselineAdminNetworkPolicy}}
spec:
  tier: Baseline
  priority: 0
  subject: {pods: {namespaceSelector: {}, podSelector: {}}}
  ingress: [{action: Deny, from: [{namespaces: {}}]}]
`)
	if len(objs) != len(want) {
		t.Fatalf("got %d objects, want %d", len(objs), len(want))
	}
	for i := range want {
		if diff := cmp.Diff(want[i].API, objs[i].API); diff != "" {
			t.Errorf("want (-), got (+):\n%s", diff)
		}
	}

	_, ps := LoadBytes("f", []byte("apiVersion: policy.networking.k8s.io/v1alpha2\nkind: AdminNetworkPolicy\nmetadata: {name: p}\n"))
	if len(ps) != 1 || !strings.Contains(ps[0].Err, `no matches for kind "AdminNetworkPolicy" in version "policy.networking.k8s.io/v1alpha2" (did you mean policy.networking.k8s.io/v1alpha1?)`) {
		t.Errorf("of another version: got %v", ps)
	}

	old := func(kind, name, rule string) string {
		return "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: " + kind + "\nmetadata: {name: " + name + "}\nspec: {priority: 1, subject: {namespaces: {}}, ingress: [" + rule + "]}"
	}
	baseline := func(name, rule string) string {
		return strings.Replace(old("BaselineAdminNetworkPolicy", name, rule), "priority: 1, ", "", 1)
	}
	const from = "from: [{namespaces: {}}]"
	for _, c := range []struct{ name, in, want string }{
		{"100 rules", old("AdminNetworkPolicy", "p", strings.Repeat("{action: Deny, "+from+"}, ", 100)), ""},
		{"101 rules", old("AdminNetworkPolicy", "p", strings.Repeat("{action: Deny, "+from+"}, ", 101)), "spec.ingress: Too many: 101: must have at most 100 items"},
		{"action of v1alpha2", old("AdminNetworkPolicy", "p", "{action: Accept, "+from+"}"), `spec.ingress[0].action: Unsupported value: "Accept (here it is Allow)"`},
		{"baseline Pass", baseline("default", "{action: Pass, "+from+"}"), `spec.ingress[0].action: Unsupported value: "Pass (not in a BaselineAdminNetworkPolicy)"`},
		{"baseline of another name", baseline("other", "{action: Deny, "+from+"}"), "metadata.name: Invalid value: \"other.baselineadminnetworkpolicy\": Only one baseline admin network policy"},
		{"port of nothing", old("AdminNetworkPolicy", "p", "{action: Deny, "+from+", ports: [{}]}"), "spec.ingress[0].protocols[0]: Required value: exactly one field must be set"},
		{"port of two", old("AdminNetworkPolicy", "p", "{action: Deny, "+from+", ports: [{portNumber: {port: 1}, namedPort: http}]}"), "spec.ingress[0].protocols[0]: Forbidden: exactly one field must be set"},
		{"ports empty", old("AdminNetworkPolicy", "p", "{action: Deny, "+from+", ports: []}"), "spec.ingress[0].protocols: Required value: must contain at least one item"},
		{"protocol", old("AdminNetworkPolicy", "p", "{action: Deny, "+from+", ports: [{portNumber: {protocol: ICMP, port: 1}}]}"), "spec.ingress[0].protocols[0]: Required value: exactly one field must be set"},
	} {
		t.Run(c.name, func(t *testing.T) { validates(t, c.in, c.want) })
	}
}
