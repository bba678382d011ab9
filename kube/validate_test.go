package kube

import (
	"strings"
	"testing"
)

// TestValidation: a manifest and what an API server says of it; no problem at
// all where want is empty.
func TestValidation(t *testing.T) {
	service := func(spec string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: " + spec
	}
	annotated := func(spec, ranges string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {service.beta.kubernetes.io/load-balancer-source-ranges: '" + ranges + "'}}\nspec: " + spec
	}
	pod := func(spec string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: " + spec
	}
	container := func(c string) string { return pod("{containers: [{name: c, image: i, " + c + "}]}") }
	policy := func(spec string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: " + spec
	}
	ingress := func(spec string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i}\nspec: " + spec
	}
	path := func(p string) string { return ingress("{rules: [{http: {paths: [" + p + "]}}]}") }
	const backend = "backend: {service: {name: a, port: {number: 80}}}"
	slice := func(s string) string {
		return "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\n" + s
	}
	deployment := func(spec string) string {
		return "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {" + spec + "}"
	}
	const template = "template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}"

	for _, c := range []struct{ name, in, want string }{
		{"service", service("{ports: [{port: 80}]}"), ""},
		{"service name", "apiVersion: v1\nkind: Service\nmetadata: {name: 1web}\nspec: {ports: [{port: 80}]}", `metadata.name: Invalid value: "1web": a DNS-1035 label must consist of`},
		{"port 0", service("{ports: [{port: 0}]}"), "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"},
		{"port too high", service("{ports: [{port: 65536}]}"), "spec.ports[0].port: Invalid value: 65536: must be between 1 and 65535, inclusive"},
		{"no ports", service("{selector: {a: b}}"), "spec.ports: Required value"},
		{"headless without ports", service("{clusterIP: None}"), ""},
		{"several ports without names", service("{ports: [{name: a, port: 1}, {port: 2}]}"), "spec.ports[1].name: Required value"},
		{"same port twice", service("{ports: [{name: a, port: 1}, {name: b, port: 1}]}"), `spec.ports[1]: Duplicate value: "TCP port 1"`},
		{"same port, two protocols", service("{ports: [{name: a, port: 1}, {name: b, port: 1, protocol: UDP}]}"), ""},
		{"same port name", service("{ports: [{name: a, port: 1}, {name: a, port: 2}]}"), `spec.ports[1].name: Duplicate value: "a"`},
		{"protocol", service("{ports: [{port: 1, protocol: tcp}]}"), `spec.ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP"`},
		{"target port name", service("{ports: [{port: 1, targetPort: this-name-is-too-long}]}"), `spec.ports[0].targetPort: Invalid value: "this-name-is-too-long": must be no more than 15 characters`},
		{"type", service("{type: Loadbalancer, ports: [{port: 1}]}"), `spec.type: Unsupported value: "Loadbalancer": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"`},
		{"node port of a ClusterIP", service("{ports: [{port: 1, nodePort: 30000}]}"), "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"},
		{"node port out of range", service("{type: NodePort, ports: [{port: 1, nodePort: 80}]}"), "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"},
		{"headless NodePort", service("{type: NodePort, clusterIP: None, ports: [{port: 1}]}"), `spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services`},
		{"clusterIP out of range", service("{clusterIP: 10.0.0.1, ports: [{port: 1}]}"), `spec.clusterIPs: Invalid value: ["10.0.0.1"]: failed to allocate IP 10.0.0.1: the provided IP (10.0.0.1) is not in the valid range. The range of valid IPs is 10.96.0.0/16`},
		{"clusterIP that is none", service("{clusterIP: here, ports: [{port: 1}]}"), `spec.clusterIPs[0]: Invalid value: "here": must be a valid IP address`},
		{"clusterIP of the DNS", service("{clusterIP: 10.96.0.10, ports: [{port: 1}]}"), `spec.clusterIPs: Invalid value: ["10.96.0.10"]: failed to allocate IP 10.96.0.10: provided IP is already allocated`},
		{"clusterIPs of one family", service("{clusterIPs: [10.96.0.20, 10.96.0.21], ipFamilyPolicy: PreferDualStack, ports: [{port: 1}]}"), "may specify no more than one IP for each IP family"},
		{"family and address", service("{clusterIP: 10.96.0.20, ipFamilies: [IPv6], ports: [{port: 1}]}"), `spec.clusterIPs[0]: Invalid value: "10.96.0.20": expected an IPv6 value as indicated by ` + "`ipFamilies[0]`"},
		{"two families, single stack", service("{ipFamilies: [IPv4, IPv6], ports: [{port: 1}]}"), "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"},
		{"affinity", service("{sessionAffinity: Cookie, ports: [{port: 1}]}"), `spec.sessionAffinity: Unsupported value: "Cookie": supported values: "ClientIP", "None"`},
		{"affinity timeout", service("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}, ports: [{port: 1}]}"), "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400"},
		{"external traffic policy inside", service("{externalTrafficPolicy: Local, ports: [{port: 1}]}"), "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services"},
		{"source ranges with spaces", service(`{type: LoadBalancer, loadBalancerSourceRanges: [" 10.0.0.0/8 "], ports: [{port: 1}]}`), ""},
		{"source ranges that are none", service("{type: LoadBalancer, loadBalancerSourceRanges: [all], ports: [{port: 1}]}"), `spec.loadBalancerSourceRanges[0]: Invalid value: "all": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`},
		{"appProtocol", service("{ports: [{port: 1, appProtocol: 'a b'}]}"), `spec.ports[0].appProtocol: Invalid value: "a b": name part must consist of alphanumeric characters`},
		{"load balancer class", service("{type: LoadBalancer, loadBalancerClass: 'a b', ports: [{port: 1}]}"), `spec.loadBalancerClass: Invalid value: "a b": name part must consist of alphanumeric characters`},
		{"health check port and node port", service("{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30001, ports: [{port: 1, nodePort: 30001}]}"), "spec.healthCheckNodePort: Invalid value: 30001: failed to allocate requested HealthCheck NodePort: provided port is already allocated"},
		{"source range with host bits", service("{type: LoadBalancer, loadBalancerSourceRanges: [10.1.2.3/8], ports: [{port: 1}]}"), `spec.loadBalancerSourceRanges[0]: Invalid value: "10.1.2.3/8": must not have bits set beyond the prefix length`},
		{"source range with spaces", service("{type: LoadBalancer, loadBalancerSourceRanges: [' 10.0.0.0/8 '], ports: [{port: 1}]}"), ""},
		{"source ranges by annotation", annotated("{type: LoadBalancer, ports: [{port: 1}]}", "10.0.0.0/8, 10.1.2.3"), `metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: Invalid value: "10.1.2.3": must be a valid CIDR value`},
		{"source ranges by annotation elsewhere", annotated("{ports: [{port: 1}]}", "10.0.0.0/8"), "metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: Forbidden: may only be used when `type` is 'LoadBalancer'"},
		{"external IP, mapped", service("{externalIPs: ['::ffff:192.0.2.1'], ports: [{port: 1}]}"), `spec.externalIPs[0]: Invalid value: "::ffff:192.0.2.1": must not be an IPv4-mapped IPv6 address`},
		{"external IP with leading zeros", service("{externalIPs: [192.0.2.01], ports: [{port: 1}]}"), `spec.externalIPs[0]: Invalid value: "192.0.2.01": must not have leading 0s`},
		{"node port of an external name", service("{type: ExternalName, externalName: a.b, ports: [{port: 1, nodePort: 30000}]}"), ""},
		{"affinity timeout too long", service("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}, ports: [{port: 1}]}"), "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400"},
		{"affinity timeout, the longest", service("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}, ports: [{port: 1}]}"), ""},
		{"affinity timeout without affinity", service("{sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}, ports: [{port: 1}]}"), ""},
		{"source ranges", service("{loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 1}]}"), "spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'"},
		{"external name", service("{type: ExternalName, externalName: db.example.com}"), ""},
		{"external name missing", service("{type: ExternalName}"), "spec.externalName: Required value"},
		{"external name with ports", service("{type: ExternalName, externalName: a.b, clusterIP: 10.96.0.30}"), "spec.clusterIPs: Forbidden: may not be set for ExternalName services"},
		{"external IP", service("{externalIPs: [127.0.0.1], ports: [{port: 1}]}"), "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"},
		{"selector", service("{selector: {a: 'b c'}, ports: [{port: 1}]}"), `spec.selector: Invalid value: "b c"`},

		{"pod", container(""), ""},
		{"no containers", pod("{}"), "spec.containers: Required value"},
		{"no image", pod("{containers: [{name: c}]}"), "spec.containers[0].image: Required value"},
		{"container name", pod("{containers: [{name: C, image: i}]}"), `spec.containers[0].name: Invalid value: "C": a lowercase RFC 1123 label`},
		{"container names", pod("{containers: [{name: c, image: i}, {name: c, image: i}]}"), `spec.containers[1].name: Duplicate value: "c"`},
		{"port name", container("ports: [{name: http!, containerPort: 80}]"), `spec.containers[0].ports[0].name: Invalid value: "http!"`},
		{"port names", container("ports: [{name: a, containerPort: 80}, {name: a, containerPort: 81}]"), `spec.containers[0].ports[1].name: Duplicate value: "a"`},
		{"container port missing", container("ports: [{name: a}]"), "spec.containers[0].ports[0].containerPort: Required value"},
		{"host ports", container("ports: [{containerPort: 80, hostPort: 80}, {containerPort: 81, hostPort: 80}]"), `spec.containers[0].ports[1].hostPort: Duplicate value: "TCP//80"`},
		{"probe", container("readinessProbe: {httpGet: {port: 80}}"), ""},
		{"probe without handler", container("readinessProbe: {periodSeconds: 1}"), "spec.containers[0].readinessProbe: Required value: must specify a handler type"},
		{"probe with two", container("livenessProbe: {httpGet: {port: 80}, tcpSocket: {port: 80}}"), "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"},
		{"probe port", container("livenessProbe: {tcpSocket: {port: 0}}"), "spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive"},
		{"liveness threshold", container("livenessProbe: {tcpSocket: {port: 1}, successThreshold: 2}"), "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"},
		{"exec probe", container("livenessProbe: {exec: {}}"), "spec.containers[0].livenessProbe.exec.command: Required value"},
		{"env twice the value", container("env: [{name: A, value: b, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]"), "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"},
		{"field path", container("env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.phase}}}]"), `spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "status.phase"`},
		{"volume mount", container("volumeMounts: [{name: v, mountPath: /v}]"), `spec.containers[0].volumeMounts[0].name: Not found: "v"`},
		{"restart policy", pod("{restartPolicy: Sometimes, containers: [{name: c, image: i}]}"), `spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"`},
		{"dns policy None", pod("{dnsPolicy: None, containers: [{name: c, image: i}]}"), "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None"},
		{"hostname", pod("{hostname: a.b, containers: [{name: c, image: i}]}"), `spec.hostname: Invalid value: "a.b": must not contain dots`},
		{"host alias", pod("{hostAliases: [{ip: x, hostnames: [a]}], containers: [{name: c, image: i}]}"), `spec.hostAliases[0].ip: Invalid value: "x": must be a valid IP address`},
		{"init probe", pod("{initContainers: [{name: i, image: i, readinessProbe: {tcpSocket: {port: 1}}}], containers: [{name: c, image: i}]}"), "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always"},
		{"label", "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {a: '-'}}\nspec: {containers: [{name: c, image: i}]}", `metadata.labels: Invalid value: "-"`},

		{"deployment", deployment("selector: {matchLabels: {a: b}}, " + template), ""},
		{"selector missing", deployment(template), "spec.selector: Required value"},
		{"selector empty", deployment("selector: {}, " + template), "spec.selector: Invalid value: {}: empty selector is invalid for deployment"},
		{"selector and template", deployment("selector: {matchLabels: {a: c}}, " + template), "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"},
		{"replicas", deployment("replicas: -1, selector: {matchLabels: {a: b}}, " + template), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"},
		{"strategy", deployment("strategy: {type: Recreate, rollingUpdate: {}}, selector: {matchLabels: {a: b}}, " + template), "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"},
		{"strategy zero", deployment("strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0}}, selector: {matchLabels: {a: b}}, " + template), "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"},
		{"template restart policy", deployment("selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}"), `spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"`},

		{"policy", policy("{podSelector: {}}"), ""},
		{"peer", policy("{podSelector: {}, ingress: [{from: [{}]}]}"), "spec.ingress[0].from[0]: Required value: must specify a peer"},
		{"block and selector", policy("{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}"), "spec.egress[0].to[0]: Forbidden: may not specify both ipBlock and another peer"},
		{"except", policy("{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}"), `spec.egress[0].to[0].ipBlock.except[0]: Invalid value: "11.0.0.0/16": must be a strict subset of ` + "`cidr`"},
		{"except all", policy("{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}"), "must be a strict subset of `cidr`"},
		{"cidr", policy("{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.1}}]}]}"), `spec.egress[0].to[0].ipBlock.cidr: Invalid value: "10.0.0.1": must be a valid CIDR value`},
		{"end port below", policy("{podSelector: {}, ingress: [{ports: [{port: 10, endPort: 9}]}]}"), "spec.ingress[0].ports[0].endPort: Invalid value: 9: must be greater than or equal to `port`"},
		{"end port of a name", policy("{podSelector: {}, ingress: [{ports: [{port: http, endPort: 90}]}]}"), "spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is non-numeric"},
		{"end port alone", policy("{podSelector: {}, ingress: [{ports: [{endPort: 90}]}]}"), "spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is not specified"},
		{"operator", policy("{podSelector: {matchExpressions: [{key: a, operator: Like, values: [b]}]}}"), `spec.podSelector.matchExpressions[0].operator: Invalid value: "Like": not a valid selector operator`},
		{"operator In without values", policy("{podSelector: {matchExpressions: [{key: a, operator: In}]}}"), "spec.podSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"},
		{"policy type", policy("{podSelector: {}, policyTypes: [Both]}"), `spec.policyTypes[0]: Unsupported value: "Both": supported values: "Egress", "Ingress"`},

		{"ingress", path("{path: /, pathType: Prefix, " + backend + "}"), ""},
		{"ingress of nothing", ingress("{}"), "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"},
		{"no path type", path("{path: /, " + backend + "}"), "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"},
		{"path type", path("{path: /, pathType: Regex, " + backend + "}"), `spec.rules[0].http.paths[0].pathType: Unsupported value: "Regex": supported values: "Exact", "ImplementationSpecific", "Prefix"`},
		{"relative path", path("{path: a, pathType: Prefix, " + backend + "}"), `spec.rules[0].http.paths[0].path: Invalid value: "a": must be an absolute path`},
		{"path with dots", path("{path: /a/../b, pathType: Exact, " + backend + "}"), `spec.rules[0].http.paths[0].path: Invalid value: "/a/../b": must not contain '/../'`},
		{"both backends", path("{path: /, pathType: Prefix, backend: {resource: {kind: a, name: b}, service: {name: a, port: {number: 80}}}}"), "spec.rules[0].http.paths[0].backend: Invalid value: \"\": cannot set both resource and service backends"},
		{"no backend port", path("{path: /, pathType: Prefix, backend: {service: {name: a}}}"), "spec.rules[0].http.paths[0].backend: Required value: port name or number is required"},
		{"two backend ports", path("{path: /, pathType: Prefix, backend: {service: {name: a, port: {name: b, number: 1}}}}"), "cannot set both port name & port number"},
		{"host", ingress("{rules: [{host: a_b.example, http: {paths: [{path: /, pathType: Prefix, " + backend + "}]}}]}"), `spec.rules[0].host: Invalid value: "a_b.example"`},
		{"host address", ingress("{rules: [{host: 192.0.2.1, http: {paths: [{path: /, pathType: Prefix, " + backend + "}]}}]}"), "must be a DNS name, not an IP address"},
		{"wildcard host", ingress("{rules: [{host: '*.example', http: {paths: [{path: /, pathType: Prefix, " + backend + "}]}}]}"), ""},
		{"wildcard inside", ingress("{rules: [{host: a.*.example, http: {paths: [{path: /, pathType: Prefix, " + backend + "}]}}]}"), "a wildcard DNS-1123 subdomain must start with '*.'"},

		{"slice", slice("addressType: IPv4\nendpoints: [{addresses: [192.0.2.1]}]\nports: [{port: 80}]"), ""},
		{"slice family", slice("addressType: IPv4\nendpoints: [{addresses: ['2001:db8::1']}]"), `endpoints[0].addresses[0]: Invalid value: "2001:db8::1": must be an IPv4 address`},
		{"slice type", slice("addressType: IPv5\nendpoints: []"), `addressType: Unsupported value: "IPv5": supported values: "FQDN", "IPv4", "IPv6"`},
		{"slice loopback", slice("addressType: IPv4\nendpoints: [{addresses: [127.0.0.1]}]"), "may not be in the loopback range"},
		{"slice link-local", slice("addressType: IPv6\nendpoints: [{addresses: ['fe80::1']}]"), "may not be in the link-local range"},
		{"slice not canonical", slice("addressType: IPv6\nendpoints: [{addresses: ['2001:DB8::1']}]"), `endpoints[0].addresses[0]: Invalid value: "2001:DB8::1": must be in canonical form ("2001:db8::1")`},
		{"slice node", slice("addressType: IPv4\nendpoints: [{addresses: [192.0.2.1], nodeName: a_b}]"), `endpoints[0].nodeName: Invalid value: "a_b": a lowercase RFC 1123 subdomain must consist of`},
		{"slice hints twice", slice("addressType: IPv4\nendpoints: [{addresses: [192.0.2.1], hints: {forZones: [{name: a}, {name: a}]}}]"), `endpoints[0].hints.forZones[1].name: Duplicate value: "a"`},
		{"slice hints too many", slice("addressType: IPv4\nendpoints: [{addresses: [192.0.2.1], hints: {forNodes: [{name: a}, {name: b}, {name: c}, {name: d}, {name: e}, {name: f}, {name: g}, {name: h}, {name: i}]}}]"), "endpoints[0].hints.forNodes: Too many: 9: must have at most 8 items"},
		{"slice duplicate", slice("addressType: IPv4\nendpoints: [{addresses: [192.0.2.1, 192.0.2.1]}]"), `endpoints[0].addresses[1]: Duplicate value: "192.0.2.1"`},
		{"slice without address", slice("addressType: IPv4\nendpoints: [{addresses: []}]"), "endpoints[0].addresses: Required value: must contain at least 1 address"},

		{"TLS secret", "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: s}\nstringData: {tls.crt: x}", "data[tls.key]: Required value"},
		{"config key", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: s}\ndata: {'a b': x}", `data[a b]: Invalid value: "a b": a valid config key must consist of`},
		{"endpoints", "apiVersion: v1\nkind: Endpoints\nmetadata: {name: s}\nsubsets: [{ports: [{port: 1}]}]", "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"},
		{"class", "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: s}\nspec: {controller: x}", "spec.controller: Invalid value"},
		{"namespace name", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}", `metadata.name: Invalid value: "a.b": must not contain dots`},
	} {
		t.Run(c.name, func(t *testing.T) { validates(t, c.in, c.want) })
	}
}

// validates applies one object: want is how its only problem begins, or a part
// of what it says; empty: there is none.
func validates(t *testing.T, in, want string) {
	t.Helper()
	s := testStore(Config{})
	change := s.Apply(load(t, in))[0]
	var got string
	for _, p := range change.Problems {
		got += p.Field + ": " + p.Err + "\n"
	}
	switch {
	case want == "" && got != "":
		t.Errorf("got %s, want no problem", got)
	case want != "" && !strings.HasPrefix(got, want) && !strings.Contains(got, ": "+want):
		t.Errorf("got\n%s\nwant\n%s", got, want)
	case want != "" && strings.Count(got, "\n") != 1:
		t.Errorf("got more than one problem:\n%s", got)
	case want != "" && len(s.State().Problems) != 1:
		t.Errorf("got problems %v in the state, want one", s.State().Problems)
	}
}
