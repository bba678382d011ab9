package ingress

import (
	"maps"
	"slices"

	"podgate/kube"
)

// The controller's ConfigMap: what holds for all Ingresses.

// controllerConfigs are where the settings for all Ingresses are, the first that exists.
var controllerConfigs = []kube.Name{
	{Namespace: "podgate-system", Name: "podgate-ingress"},
	{Namespace: "ingress-nginx", Name: "ingress-nginx-controller"},
}

// globals are the settings that every Ingress takes from the ConfigMap.
var globals = []string{
	"add-headers", "custom-http-errors", "denylist-source-range", "disable-access-log", "force-ssl-redirect",
	"global-allowed-response-headers", "hsts", "hsts-include-subdomains", "hsts-max-age", "hsts-preload",
	"http-redirect-code", "limit-conn-status-code", "limit-req-status-code", "load-balance", "proxy-body-size",
	"proxy-connect-timeout", "proxy-next-upstream", "proxy-next-upstream-timeout", "proxy-next-upstream-tries",
	"proxy-read-timeout", "proxy-send-timeout", "proxy-set-headers", "ssl-redirect", "whitelist-source-range",
}

// noteConfig reports the ConfigMap's keys that have no effect.
func (c *compiler) noteConfig() {
	for _, name := range controllerConfigs {
		if m := c.state.ConfigMaps[name]; m != nil {
			c.config, c.configName = m.Data, name
			break
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.config)) {
		if !slices.Contains(globals, key) {
			c.problems = append(c.problems, kube.Problem{
				Severity: kube.Warning, Kind: "ConfigMap", Object: c.configName,
				Field: "data[" + key + "]", Err: "has no effect: podgate does not have this",
			})
		}
	}
}
