package ingress

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"

	"podgate/kube"
)

// certs are the certificates by the names that Ingresses list for TLS. Like
// Routes they are immutable.
type certs struct {
	exact    map[string]*cert
	wildcard map[string]*cert // by parent domain
	fallback *cert            // of an Ingress whose TLS is for all hosts; nil: self-signed
}

// cert is what a name has: a certificate, or a Secret that has none to give.
type cert struct {
	secret kube.Name
	pair   *tls.Certificate // nil: the self-signed one stands in
}

// listed returns what an Ingress says of a name, nil if none lists it.
func (c *certs) listed(name string) *cert {
	if e := c.exact[name]; e != nil {
		return e
	}
	return c.wildcard[parentDomain(name)]
}

// find returns what a name has, nil for the self-signed certificate.
func (c *certs) find(name string) *cert { return cmp.Or(c.listed(name), c.fallback) }

func (c *certs) describe(name string) string {
	e := c.find(name)
	switch {
	case e == nil:
		return "podgate's own self-signed one, as no Ingress has TLS for this host"
	case e.pair == nil:
		return fmt.Sprintf("podgate's own self-signed one, as Secret %s has none", e.secret)
	}
	return "of Secret " + e.secret.String()
}

// add enters a certificate for a name; the first that is usable stays.
func (c *certs) add(name string, e *cert) {
	table, key := c.exact, name
	if len(name) > 2 && name[:2] == "*." {
		table, key = c.wildcard, name[2:]
	}
	if have := table[key]; have == nil || have.pair == nil && e.pair != nil {
		table[key] = e
	}
}

// selfSigned makes the certificate for names that have none. Nobody trusts it;
// it lets a client that does not ask for trust see the answer.
func selfSigned() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make self-signed certificate: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make self-signed certificate: %w", err)
	}
	now := time.Now()
	template := x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"podgate"}, CommonName: "podgate self-signed fallback"},
		DNSNames:     []string{"podgate.invalid"},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make self-signed certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
