package ingress

import (
	"slices"
	"strings"

	"podgate/kube"
)

// References names the Secrets and ConfigMaps that Compile would look for, whether
// they are there or not: all that has to be read of an API server.
func References(st *kube.State) (secrets, configMaps []kube.Name) {
	configMaps = slices.Clone(controllerConfigs)
	fields := []string{"add-headers", "proxy-set-headers", "custom-headers", "auth-proxy-set-headers"}
	for _, of := range controllerConfigs {
		if m := st.ConfigMaps[of]; m != nil {
			for _, key := range fields {
				configMaps = appendName(configMaps, of.Namespace, m.Data[key])
			}
		}
	}
	for _, ing := range st.Ingresses {
		for _, t := range ing.Spec.TLS {
			secrets = appendName(secrets, ing.Namespace, t.SecretName)
		}
		for _, prefix := range annotationPrefixes {
			for _, name := range []string{"auth-secret", "auth-tls-secret", "proxy-ssl-secret"} {
				secrets = appendName(secrets, ing.Namespace, ing.Annotations[prefix+name])
			}
			for _, name := range fields {
				configMaps = appendName(configMaps, ing.Namespace, ing.Annotations[prefix+name])
			}
		}
	}
	return gatewayReferences(st, secrets, configMaps)
}

// appendName adds what a value such as "name" or "namespace/name" names.
func appendName(all []kube.Name, namespace, value string) []kube.Name {
	value = strings.TrimSpace(value)
	if ns, name, ok := strings.Cut(value, "/"); ok {
		namespace, value = ns, name
	}
	if n := (kube.Name{Namespace: namespace, Name: value}); value != "" && !slices.Contains(all, n) {
		all = append(all, n)
	}
	return all
}

// Served names the Ingresses that are served here.
func Served(st *kube.State, cfg Config) map[kube.Name]bool {
	cfg = cfg.withDefaults()
	c := &compiler{Routes: &Routes{source: source{state: st, cfg: sourceConfig{class: cfg.Class, controller: cfg.Controller}}}}
	served := map[kube.Name]bool{}
	for n, ing := range st.Ingresses {
		if p := c.notOurs(ing); p.Err == "" {
			served[n] = true
		}
	}
	return served
}
