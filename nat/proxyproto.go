package nat

import "strings"

// annotationProxy of a Service, or of a pod with hostPorts, says whether
// connections at its published ports begin with a PROXY protocol header: as they
// come in ("accept"), as they go on to the endpoint ("send"), or both.
const annotationProxy = "podgate.dev/proxy-protocol"

// cloudProxies are the annotations by which users of clouds ask their load
// balancers to send the header, with a part of the value that asks for it.
var cloudProxies = map[string][]string{
	"service.beta.kubernetes.io/aws-load-balancer-proxy-protocol":          {"*"},
	"service.beta.kubernetes.io/aws-load-balancer-target-group-attributes": {"proxy_protocol_v2.enabled=true"},
	"service.beta.kubernetes.io/do-loadbalancer-enable-proxy-protocol":     {"true"},
	"service.beta.kubernetes.io/linode-loadbalancer-proxy-protocol":        {"v1", "v2"},
	"service.beta.kubernetes.io/scw-loadbalancer-proxy-protocol-v2":        {"*", "true"},
	"load-balancer.hetzner.cloud/uses-proxyprotocol":                       {"true"},
	"loadbalancer.openstack.org/proxy-protocol":                            {"true", "v1", "v2"},
}

// proxyProtocol is what annotations ask for.
type proxyProtocol struct {
	accept, send bool
	balancerSend bool // from the load balancer on
}

func (c *compiler) proxyProtocol(annotations map[string]string) (p proxyProtocol) {
	for _, word := range strings.FieldsFunc(annotations[annotationProxy], func(r rune) bool { return r == ',' || r == ' ' }) {
		switch word {
		case "accept":
			p.accept = true
		case "send":
			p.send = true
		default:
			c.unsupported(annotationProxy, word, "accept", "send")
		}
	}
	for name, values := range cloudProxies {
		asked, ok := annotations[name]
		for _, v := range values {
			p.balancerSend = p.balancerSend || ok && strings.Contains(strings.ToLower(asked), v)
		}
	}
	return p
}
