package dns

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Config is for Compile and NewServer alike. The zero value works: it is what
// kubeadm's Corefile says, for the domain "cluster.local", without upstreams.
type Config struct {
	Domain       string         // the cluster domain; "cluster.local"
	PodCIDRs     []netip.Prefix // whose reverse zones are answered here
	ServiceCIDRs []netip.Prefix // likewise
	TTL          time.Duration  // of the zone's records, whole seconds; 30 s, and 0 s for NoTTL
	Pods         PodMode        // Insecure

	Upstreams []netip.AddrPort // asked in this order for every name that is not the cluster's
	Timeout   time.Duration    // of one attempt at one upstream; 2 s
	CacheTTL  time.Duration    // upper bound for the life of an upstream's answer, negative: no cache; 30 s
	CacheSize int              // answers kept at most; 10,000
	MaxUDP    int              // longest UDP answer in bytes, whatever the client can take; 1232

	// Exchange sends one query to one upstream over "udp" or "tcp" and returns
	// its answer. Nil dials from the gateway's own namespace.
	Exchange func(ctx context.Context, network, server string, m *dns.Msg) (*dns.Msg, error)
	// UpstreamCAs are who may vouch for upstreams over TLS. Nil: the system's.
	UpstreamCAs *x509.CertPool
	Log         *slog.Logger

	// Autopath answers a pod's first question of a search list with what the
	// list leads to; Search is the list of the pod with that address, nil if it
	// has none. Search is called from several goroutines.
	Autopath bool
	Search   func(client netip.Addr) []string
	// RandomCase asks upstreams over UDP in random case and takes only answers
	// that have it too (DNS 0x20).
	RandomCase bool

	kube kubeOptions // of the Corefile

	// Told, if not nil, is called with what an answer tells a client, before it
	// is sent: the name as asked, its addresses and how long they are good for.
	// It is called from several goroutines.
	Told func(client netip.Addr, name string, addrs []netip.Addr, ttl time.Duration)
}

// NoTTL is the TTL of records that nobody is to remember.
const NoTTL time.Duration = -1

// PodMode says which names under pod.<domain> have addresses.
type PodMode uint8

const (
	Insecure PodMode = iota // every 1-2-3-4.<namespace>: kubeadm's choice
	Verified                // those of pods that are in that namespace
	Disabled                // none
)

func (c Config) withDefaults() Config {
	if c.Domain == "" {
		c.Domain = "cluster.local"
	}
	c.Domain = dns.CanonicalName(c.Domain)
	if c.TTL == 0 {
		c.TTL = 30 * time.Second
	}
	if c.Timeout <= 0 {
		c.Timeout = 2 * time.Second
	}
	if c.CacheTTL == 0 {
		c.CacheTTL = 30 * time.Second
	}
	if c.CacheSize <= 0 {
		c.CacheSize = 10_000
	}
	if c.MaxUDP < dns.MinMsgSize {
		c.MaxUDP = 1232
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
