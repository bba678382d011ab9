package main

// Theory of operation
//
// Where no TAP may be made in the node's namespace, the node's own processes have
// no route to pods and Services. What can be had without a privilege is what a
// program can be told of: a proxy on loopback, SOCKS5 (RFC 1928, CONNECT) and HTTP
// at one port, told apart by the first byte, and the cluster's DNS at another.
//
//	curl -x socks5h://127.0.0.1:10258 http://web.default.svc.cluster.local/
//	dig @127.0.0.1 -p 10253 web.default.svc.cluster.local
//
// The proxy leads into the cluster and nowhere else: names are those of the
// cluster's DNS, and addresses have to be of pods or Services. There the
// connection is like the node's own, with the gateway's address.

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"podgate/control"
)

// What the listeners are for, in `podgate status`.
const (
	proxyFor    = "the node's own processes (SOCKS5 and HTTP proxy)"
	proxyDNSFor = "the node's own processes (DNS)"
)

// nodeProxy is the proxy.
//
// Goroutines: one that accepts, one that serves HTTP, and one or two for each
// connection; close ends them and waits.
type nodeProxy struct {
	dial    func(ctx context.Context, host string, port uint16) (net.Conn, error)
	forward *httputil.ReverseProxy

	listener net.Listener
	plain    chan net.Conn // connections that speak HTTP
	server   *http.Server
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

// errNotCluster is why an address is not dialled.
var errNotCluster = errors.New("is no address of a pod or Service of the cluster")

// proxyHeaderTime is how long a client may take to say where it wants to go.
const proxyHeaderTime = 10 * time.Second

func newNodeProxy(ln net.Listener, dial func(context.Context, string, uint16) (net.Conn, error)) *nodeProxy {
	p := &nodeProxy{dial: dial, listener: ln, plain: make(chan net.Conn)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.forward = &httputil.ReverseProxy{
		Rewrite: func(*httputil.ProxyRequest) {}, // absolute as it came, hop-by-hop fields are gone
		Transport: &http.Transport{DisableCompression: true, IdleConnTimeout: time.Minute, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return p.dialAddr(ctx, addr)
		}},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { p.refuse(w, err) },
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: proxyHeaderTime, IdleTimeout: time.Minute}
	p.wg.Go(p.accept)
	p.wg.Go(func() { p.server.Serve(handedOver{p}) })
	return p
}

func (p *nodeProxy) close() {
	p.cancel()
	p.listener.Close()
	p.server.Close()
	p.wg.Wait()
}

func (p *nodeProxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.look(c) })
	}
}

// look finds out what a connection speaks.
func (p *nodeProxy) look(c net.Conn) {
	stop := context.AfterFunc(p.ctx, func() { c.Close() })
	defer stop()
	c.SetDeadline(time.Now().Add(proxyHeaderTime))
	in := bufio.NewReader(c)
	first, err := in.Peek(1)
	switch {
	case err != nil:
		c.Close()
	case first[0] == socksVersion:
		p.socks(c, in)
	default:
		c.SetDeadline(time.Time{})
		select {
		case p.plain <- peeked{c, in}:
		case <-p.ctx.Done():
		}
	}
}

// peeked is a connection of which something was read.
type peeked struct {
	net.Conn
	in *bufio.Reader
}

func (c peeked) Read(b []byte) (int, error) { return c.in.Read(b) }

// handedOver are the connections that speak HTTP, as a listener.
type handedOver struct{ *nodeProxy }

func (h handedOver) Accept() (net.Conn, error) {
	select {
	case c := <-h.plain:
		return c, nil
	case <-h.ctx.Done():
		return nil, net.ErrClosed
	}
}
func (h handedOver) Close() error   { return nil }
func (h handedOver) Addr() net.Addr { return h.listener.Addr() }

func (p *nodeProxy) dialAddr(ctx context.Context, addr string) (net.Conn, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("port %q: %w", text, err)
	}
	return p.dial(ctx, host, uint16(port))
}

// ServeHTTP is the HTTP proxy: CONNECT, and requests in absolute form.
func (p *nodeProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		to, err := p.dialAddr(r.Context(), r.Host)
		if err != nil {
			p.refuse(w, err)
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			to.Close()
			return
		}
		c.SetDeadline(time.Time{})
		io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
		splice(p.ctx, peeked{c, rw.Reader}, to)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		p.forward.ServeHTTP(w, r)
	default:
		http.Error(w, "podgate: this is a proxy into the cluster, SOCKS5 and HTTP: curl -x socks5h://"+p.listener.Addr().String()+" http://SERVICE.NAMESPACE.svc.DOMAIN/", http.StatusBadRequest)
	}
}

func (p *nodeProxy) refuse(w http.ResponseWriter, err error) {
	code := http.StatusBadGateway
	switch {
	case errors.Is(err, errNotCluster):
		code = http.StatusForbidden
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		code = http.StatusGatewayTimeout
	}
	http.Error(w, "podgate: "+err.Error(), code)
}

// RFC 1928.
const (
	socksVersion = 5
	socksNoAuth  = 0
	socksNoWay   = 0xff
	socksConnect = 1

	socksIPv4 = 1
	socksName = 3
	socksIPv6 = 4

	socksOK          = 0
	socksNotAllowed  = 2
	socksUnreachable = 4
	socksRefused     = 5
	socksTimeout     = 6
	socksNoCommand   = 7
	socksNoAddress   = 8
)

// socks serves one connection to its end.
func (p *nodeProxy) socks(c net.Conn, in *bufio.Reader) {
	defer c.Close()
	host, port, code := readSocks(c, in)
	var to net.Conn
	if code == socksOK {
		ctx, cancel := context.WithTimeout(p.ctx, proxyHeaderTime)
		defer cancel()
		var err error
		if to, err = p.dial(ctx, host, port); err != nil {
			code = socksCode(err)
		}
	}
	if code == socksNoWay {
		return
	}
	c.Write([]byte{socksVersion, code, 0, socksIPv4, 0, 0, 0, 0, 0, 0}) // where the connection comes from is nobody's concern
	if to != nil {
		c.SetDeadline(time.Time{})
		splice(p.ctx, peeked{c, in}, to)
	}
}

// readSocks reads where a client wants to go; code is socksNoWay if there is
// nobody to answer any more.
func readSocks(c net.Conn, in *bufio.Reader) (host string, port uint16, code byte) {
	var head [2]byte // version, number of methods
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return "", 0, socksNoWay
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(in, methods); err != nil {
		return "", 0, socksNoWay
	}
	if !slices.Contains(methods, socksNoAuth) {
		c.Write([]byte{socksVersion, socksNoWay})
		return "", 0, socksNoWay
	}
	c.Write([]byte{socksVersion, socksNoAuth})
	var request [4]byte // version, command, reserved, kind of address
	if _, err := io.ReadFull(in, request[:]); err != nil || request[0] != socksVersion {
		return "", 0, socksNoWay
	}
	length := 0
	switch request[3] {
	case socksIPv4:
		length = 4
	case socksIPv6:
		length = 16
	case socksName:
		n, err := in.ReadByte()
		if err != nil {
			return "", 0, socksNoWay
		}
		length = int(n)
	default:
		return "", 0, socksNoAddress
	}
	addr := make([]byte, length+2)
	if _, err := io.ReadFull(in, addr); err != nil {
		return "", 0, socksNoWay
	}
	host = string(addr[:length])
	if request[3] != socksName {
		a, _ := netip.AddrFromSlice(addr[:length])
		host = a.String()
	}
	if request[1] != socksConnect {
		return "", 0, socksNoCommand
	}
	return host, binary.BigEndian.Uint16(addr[length:]), socksOK
}

func socksCode(err error) byte {
	switch {
	case errors.Is(err, errNotCluster):
		return socksNotAllowed
	case errors.Is(err, syscall.ECONNREFUSED):
		return socksRefused
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return socksTimeout
	}
	return socksUnreachable
}

// splice copies both ways until both are done, or ctx is, and closes both.
func splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	defer a.Close()
	defer b.Close()
	var wg sync.WaitGroup
	one := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if half, ok := underlying(to).(interface{ CloseWrite() error }); ok && err == nil {
			half.CloseWrite()
			return
		}
		a.Close()
		b.Close()
	}
	wg.Go(func() { one(b, a) })
	one(a, b)
	wg.Wait()
}

func underlying(c net.Conn) net.Conn {
	for {
		p, ok := c.(peeked)
		if !ok {
			return c
		}
		c = p.Conn
	}
}

// dialCluster dials pods and Services, by address or by name, which may lack the
// cluster's domain, as the node.
func (g *gateway) dialCluster(ctx context.Context, host string, port uint16) (net.Conn, error) {
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, a.Unmap())
	} else {
		for _, name := range []string{host, host + "." + g.cfg.Kube.ClusterDomain} {
			if addrs = g.dns.Resolve(name); len(addrs) > 0 {
				break
			}
		}
		if len(addrs) == 0 {
			return nil, fmt.Errorf("the cluster's DNS has no address for %s", host)
		}
	}
	inside := g.dialFrom(ownAddrs(g.cfg.Kube.PodCIDRs).node)
	var errs []error
	for _, a := range addrs {
		in := func(p netip.Prefix) bool { return p.Contains(a) }
		if !slices.ContainsFunc(g.cfg.Kube.PodCIDRs, in) && !slices.ContainsFunc(g.cfg.Kube.ServiceCIDRs, in) {
			errs = append(errs, fmt.Errorf("%s %w", a, errNotCluster))
			continue
		}
		c, err := inside(ctx, "tcp", netip.AddrPortFrom(a, port).String())
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// serveNode starts what stands in for the TAP.
func (c *cluster) serveNode(ctx context.Context, g *gateway) {
	failed := func(at netip.AddrPort, key string, err error) {
		g.log.Warn("the node's own processes are not served here", "at", at, "err", cause(err), "choose another", key)
	}
	if at := g.cfg.NodeProxy; at.IsValid() {
		ln, err := net.Listen("tcp", at.String())
		if err != nil {
			failed(at, "gateway.proxy", err)
		} else {
			p := newNodeProxy(ln, g.dialCluster)
			g.wg.Go(func() { <-ctx.Done(); p.close() })
			g.listeners = append(g.listeners, control.Listener{Address: ln.Addr().String() + "/tcp", For: proxyFor})
		}
	}
	if at := g.cfg.NodeProxyDNS; at.IsValid() {
		pc, err := net.ListenPacket("udp", at.String())
		if err != nil {
			failed(at, "gateway.proxy-dns", err)
			return
		}
		ln, err := net.Listen("tcp", pc.LocalAddr().String())
		if err != nil {
			pc.Close()
			failed(at, "gateway.proxy-dns", err)
			return
		}
		g.wg.Go(func() { g.fatal("dns for the node", g.dns.ServeUDP(pc)) })
		g.wg.Go(func() { g.fatal("dns for the node", g.dns.ServeTCP(ln)) })
		g.listeners = append(g.listeners, control.Listener{Address: ln.Addr().String() + "/udp", For: proxyDNSFor}, control.Listener{Address: ln.Addr().String() + "/tcp", For: proxyDNSFor})
	}
}
