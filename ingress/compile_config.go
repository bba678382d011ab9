package ingress

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"podgate/kube"
)

// The controller's ConfigMap: what holds for all Ingresses.

// controllerConfigs are where the settings for all Ingresses are, the first that exists.
var controllerConfigs = []kube.Name{
	{Namespace: "podgate-system", Name: "podgate-ingress"},
	{Namespace: "ingress-nginx", Name: "ingress-nginx-controller"},
}

// globals are the settings that every Ingress takes from the ConfigMap where its
// annotations say nothing.
var globals = []string{
	"add-headers", "custom-http-errors", "denylist-source-range", "disable-access-log", "disable-proxy-intercept-errors", "force-ssl-redirect",
	"global-allowed-response-headers", "hide-headers", "hsts", "hsts-include-subdomains", "hsts-max-age", "hsts-preload",
	"http-redirect-code", "limit-conn-status-code", "limit-req-status-code", "load-balance", "proxy-add-original-uri-header",
	"proxy-body-size", "proxy-connect-timeout", "proxy-cookie-domain", "proxy-cookie-path", "proxy-next-upstream",
	"proxy-next-upstream-timeout", "proxy-next-upstream-tries", "proxy-read-timeout", "proxy-redirect-from", "proxy-redirect-to",
	"proxy-send-timeout", "proxy-set-headers", "retry-non-idempotent", "service-upstream", "slow-start", "ssl-redirect",
	"whitelist-source-range",
}

// ofAll are the settings of the front door as a whole.
var ofAll = []string{
	"block-cidrs", "block-referers", "block-user-agents", "no-auth-locations", "no-tls-redirect-locations", "proxy-real-ip-cidr",
	"use-forwarded-headers",
	"global-auth-always-set-cookie", "global-auth-cache-duration", "global-auth-cache-key", "global-auth-method", "global-auth-request-redirect",
	"global-auth-response-headers", "global-auth-signin", "global-auth-signin-redirect-param", "global-auth-url",
}

// asBefore are settings whose value is what podgate does anyway; with another
// value they are reported.
var asBefore = map[string]string{
	"allow-backend-server-header": "true", "allow-snippet-annotations": "false", "compute-full-forwarded-for": "true", "enable-access-log-for-default-backend": "true",
	"enable-brotli": "false", "forwarded-for-header": "X-Forwarded-For", "generate-request-id": "true", "proxy-buffering": "off", "proxy-request-buffering": "off",
	"server-tokens": "false", "ssl-protocols": "TLSv1.2 TLSv1.3", "ssl-session-tickets": "true", "use-gzip": "false", "use-http2": "true", "use-proxy-protocol": "false",
}

// acme is where certificate authorities look for proofs, by plain HTTP.
const acme = "/.well-known/acme-challenge"

// locations reports whether a rule's path is below one of a setting's.
func (c *compiler) locations(setting, path string) bool {
	list, ok := c.config[setting]
	if !ok {
		list = acme
	}
	for prefix := range strings.SplitSeq(list, ",") {
		if prefix = strings.TrimSpace(prefix); prefix != "" && strings.HasPrefix(path, prefix) {
			return true
		}
	}
	return false
}

// noteConfig finds the ConfigMap, takes what is of the front door as a whole, and
// reports the keys that have no effect.
func (c *compiler) noteConfig() {
	for _, name := range controllerConfigs {
		if m := c.state.ConfigMaps[name]; m != nil {
			c.config, c.configName = m.Data, name
			break
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.config)) {
		if v, ok := asBefore[key]; ok && v == strings.TrimSpace(c.config[key]) {
			continue
		}
		if !slices.Contains(globals, key) && !slices.Contains(ofAll, key) {
			c.warnConfig(key, "has no effect: podgate does not have this")
		}
	}
	if strings.TrimSpace(c.config["use-forwarded-headers"]) == "true" {
		c.believed = c.configRanges("proxy-real-ip-cidr", "0.0.0.0/0,::/0")
	}
	c.blocked = blocked{
		cidrs:    c.configRanges("block-cidrs", ""),
		agents:   c.configPatterns("block-user-agents"),
		referers: c.configPatterns("block-referers"),
	}
}

func (c *compiler) warnConfig(key, format string, args ...any) {
	c.problems = append(c.problems, kube.Problem{
		Severity: kube.Warning, Kind: "ConfigMap", Object: c.configName, Field: "data[" + key + "]", Err: fmt.Sprintf(format, args...),
	})
}

// configRanges reads prefixes and addresses.
func (c *compiler) configRanges(key, otherwise string) (out []netip.Prefix) {
	for s := range strings.SplitSeq(cmp.Or(c.config[key], otherwise), ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := parseRange(s)
		if err != nil {
			c.warnConfig(key, "%q is neither an address nor a prefix", s)
			continue
		}
		out = append(out, p)
	}
	return out
}

// configPatterns reads texts, and patterns as nginx's map has them: "~" for one
// that minds case, "~*" for one that does not.
func (c *compiler) configPatterns(key string) (out []*regexp.Regexp) {
	for s := range strings.SplitSeq(c.config[key], ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		pattern := "(?i)^" + regexp.QuoteMeta(s) + "$"
		if rest, ok := strings.CutPrefix(s, "~*"); ok {
			pattern = "(?i)" + rest
		} else if rest, ok := strings.CutPrefix(s, "~"); ok {
			pattern = rest
		}
		re, err := regexp.Compile(pattern)
		if err != nil {
			c.warnConfig(key, "%v", err)
			continue
		}
		out = append(out, re)
	}
	return out
}

// blocked are the requests that no Ingress answers.
type blocked struct {
	cidrs            []netip.Prefix
	agents, referers []*regexp.Regexp
}

// nobody reports whether nothing is blocked.
func (b *blocked) nobody() bool { return len(b.cidrs)+len(b.agents)+len(b.referers) == 0 }

// has reports whether a request is.
func (b *blocked) has(q *request) bool {
	any := func(patterns []*regexp.Regexp, v string) bool {
		return slices.ContainsFunc(patterns, func(re *regexp.Regexp) bool { return re.MatchString(v) })
	}
	return contains(b.cidrs, q.origin()) || any(b.agents, q.in.UserAgent()) || any(b.referers, q.in.Referer())
}
