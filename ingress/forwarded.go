package ingress

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// What endpoints are told of the client: who it is and what it asked us for.

// scheme is the client's.
func (q *request) scheme() string {
	if q.secure() {
		return "https"
	}
	return "http"
}

// id names the request, to the endpoint and in logs.
func (q *request) id() string {
	if q.requestID == "" {
		if q.trust {
			q.requestID = q.in.Header.Get("X-Request-Id")
		}
		if q.requestID == "" {
			q.requestID = requestID()
		}
	}
	return q.requestID
}

// secure reports whether the client's connection is encrypted.
func (q *request) secure() bool {
	return q.tls != nil || q.trust && strings.EqualFold(q.in.Header.Get("X-Forwarded-Proto"), "https")
}

// forwarded says in the fields of a request where it came from.
func (q *request) forwarded(h http.Header) {
	in := q.in
	for name := range h {
		if !q.trust && impersonates(name) {
			delete(h, name)
		}
	}
	forwardedFor := q.client.String()
	proto, port := "http", q.local.Port()
	if q.tls != nil {
		proto = "https"
	}
	set := func(name, value string) {
		if had := in.Header.Get(name); q.trust && had != "" {
			value = had
		}
		h.Set(name, value)
	}
	if had := in.Header.Values("X-Forwarded-For"); q.trust && len(had) > 0 {
		forwardedFor = strings.Join(had, ", ") + ", " + forwardedFor
	}
	h.Del("Proxy")
	h.Set("X-Forwarded-For", forwardedFor)
	set("X-Forwarded-Proto", proto)
	h.Set("X-Scheme", h.Get("X-Forwarded-Proto"))
	set("X-Forwarded-Host", in.Host)
	set("X-Forwarded-Port", strconv.Itoa(int(port)))
	h.Set("X-Request-Id", q.id())
	h.Set("X-Real-Ip", q.origin().String())
}

// impersonates reports whether a field of this name, or one that CGI-like
// backends take for it, says where a request came from; or is "Proxy", which they
// take for the environment variable HTTP_PROXY.
func impersonates(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	switch name {
	case "x-real-ip", "x-request-id", "x-scheme", "x-original-forwarded-for", "forwarded", "proxy":
		return true
	}
	return strings.HasPrefix(name, "x-forwarded-")
}

// origin is the last address on the way that is no trusted proxy's.
func (q *request) origin() netip.Addr {
	addr := q.client
	if !q.trust {
		return addr
	}
	hops := strings.Split(strings.Join(q.in.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		next, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		if addr = next; !q.trusted(addr) {
			break
		}
	}
	return addr
}

// trusted reports whether a client's word counts, by the settings or the ConfigMap.
func (s *Server) trusted(addr netip.Addr) bool {
	return contains(s.cfg.TrustedProxies, addr) || contains(s.live.Load().believed, addr)
}

func requestID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
