package ingress

import (
	"crypto/tls"
	"fmt"
	"strings"
)

// opensslSuites are the cipher suites of TLS 1.2 that podgate speaks to
// endpoints, by the names that proxy-ssl-ciphers has for them.
var opensslSuites = map[string]uint16{
	"ECDHE-ECDSA-AES128-GCM-SHA256": tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-ECDSA-AES256-GCM-SHA384": tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-ECDSA-CHACHA20-POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-ECDSA-AES128-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
	"ECDHE-ECDSA-AES256-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	"ECDHE-RSA-AES128-GCM-SHA256":   tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-RSA-AES256-GCM-SHA384":   tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-CHACHA20-POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-RSA-AES128-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	"ECDHE-RSA-AES256-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	"AES128-GCM-SHA256":             tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
	"AES256-GCM-SHA384":             tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
}

// readCiphers reads a cipher list as OpenSSL's ciphers(1) has it. Of its words
// those that name a suite count; those for all that is good (DEFAULT, HIGH), and
// what is added to them or taken away, mean the usual suites: no other is spoken.
func readCiphers(list string) (names string, err error) {
	var unknown []string
	usual := false
	for word := range strings.FieldsFuncSeq(list, func(c rune) bool { return c == ':' || c == ',' || c == ' ' }) {
		switch {
		case opensslSuites[word] != 0:
			names += word + " "
		case word == "DEFAULT", word == "HIGH", word == "ALL":
			usual = true
		case strings.ContainsAny(word[:1], "!-+@"), strings.HasPrefix(word, "TLS_"): // of TLS 1.3, where there is no choice
		default:
			unknown = append(unknown, word)
		}
	}
	switch {
	case usual:
		return "", nil
	case names == "" && len(unknown) > 0:
		return "", fmt.Errorf("podgate speaks none of %q", list)
	}
	return names, nil
}
