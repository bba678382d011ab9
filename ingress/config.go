package ingress

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// Config is for Compile and NewServer alike. The zero value works.
type Config struct {
	Class      string // name of our IngressClass where no object says so; "podgate"
	Controller string // spec.controller of the IngressClasses that are ours; "podgate.dev/ingress"

	// Dial connects to an endpoint of a backend, "tcp" and "address:port", from
	// the front door's own address. Nil dials from the gateway's own namespace.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// DialAs connects to an endpoint from a client's own address, or where the
	// endpoint could not answer that as Dial does. Nil: as Dial does.
	DialAs func(ctx context.Context, client netip.Addr, to netip.AddrPort) (net.Conn, error)
	// DialOut connects to "name:port" outside the cluster, for Services of type
	// ExternalName. Nil: there is no way out, and they are answered with 503.
	DialOut        func(ctx context.Context, network, addr string) (net.Conn, error)
	DefaultBackend string         // "namespace/service" or "namespace/service:port": answers what no Ingress does; "": 404
	TrustedProxies []netip.Prefix // clients whose X-Forwarded-* are believed and continued; none
	Gateway        GatewayConfig
	Now            func() time.Time // when conditions change; time.Now
	DialTimeout    time.Duration    // of one attempt to connect to an endpoint; 5 s
	HeaderTimeout  time.Duration    // until a client's request header is complete; 10 s
	BodyTimeout    time.Duration    // between two reads of a request's body, gRPC's aside; 60 s
	AnswerTimeout  time.Duration    // until an endpoint's response header, from the end of the request; 60 s
	AccessLog      func(Access)     // told of every request after it was answered; nil: nobody is
	Log            *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Class == "" {
		c.Class = "podgate"
	}
	if c.Controller == "" {
		c.Controller = "podgate.dev/ingress"
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	c.Gateway = c.Gateway.withDefaults()
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.DialTimeout <= 0 {
		c.DialTimeout = 5 * time.Second
	}
	if c.HeaderTimeout <= 0 {
		c.HeaderTimeout = 10 * time.Second
	}
	if c.BodyTimeout <= 0 {
		c.BodyTimeout = 60 * time.Second
	}
	if c.AnswerTimeout <= 0 {
		c.AnswerTimeout = 60 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
