package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	mdns "github.com/miekg/dns"

	"podgate/dns"
	"podgate/kube"
)

// corefile is kubeadm's, with the reverse zones that podgate serves.
const corefile = `.:0 {
    bind 127.0.0.1
    errors
    kubernetes cluster.local 10.244.0.0/16 10.96.0.0/16 fd00:10:244::/64 fd00:10:96::/112 {
        endpoint %s
        pods %s
        ttl 30
    }
    forward . %s {
        prefer_udp
    }
}
`

// startUpstream serves www.example.com and denies everything else.
func startUpstream(t *testing.T) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &mdns.Server{PacketConn: pc, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		soa, _ := mdns.NewRR("example.com. 20 IN SOA ns.example.com. host.example.com. 1 2 3 4 20")
		switch {
		case !strings.EqualFold(q.Question[0].Name, "www.example.com."):
			m.Rcode, m.Ns = mdns.RcodeNameError, []mdns.RR{soa}
		case q.Question[0].Qtype == mdns.TypeA:
			a, _ := mdns.NewRR(q.Question[0].Name + " 20 IN A 192.0.2.7")
			m.Answer = []mdns.RR{a}
		default:
			m.Ns = []mdns.RR{soa}
		}
		w.WriteMsg(m)
	})}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		s.Shutdown()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

// where is where a server listens, by network.
type where map[string]string

// startCoreDNS serves st by CoreDNS.
func startCoreDNS(t *testing.T, st *kube.State, pods string, upstream netip.AddrPort) where {
	t.Helper()
	log.SetOutput(io.Discard)
	caddy.Quiet = true
	api := httptest.NewServer(newAPIServer(st))
	instance, err := caddy.Start(caddy.CaddyfileInput{
		Filepath: "Corefile", ServerTypeName: "dns", Contents: fmt.Appendf(nil, corefile, api.URL, pods, upstream),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		instance.ShutdownCallbacks()
		instance.Stop()
		api.CloseClientConnections()
		api.Close()
	})
	at := where{}
	for _, s := range instance.Servers() {
		for _, a := range []net.Addr{s.Addr(), s.LocalAddr()} {
			if a != nil {
				at[a.Network()] = a.String()
			}
		}
	}
	if at["tcp"] == "" || at["udp"] == "" {
		t.Fatalf("CoreDNS listens at %v only", at)
	}
	return at
}

// startPodgate serves st by podgate's server, which keeps no answers as CoreDNS does not.
func startPodgate(t *testing.T, st *kube.State, mode dns.PodMode, upstream netip.AddrPort) where {
	t.Helper()
	cfg := podgateConfig(mode)
	cfg.Upstreams, cfg.CacheTTL = []netip.AddrPort{upstream}, -1
	s := dns.NewServer(cfg)
	s.SetZone(dns.Compile(nil, st, cfg))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- s.ServeTCP(l) }()
	go func() { done <- s.ServeUDP(pc) }()
	t.Cleanup(func() {
		s.Shutdown(context.Background())
		for range 2 {
			if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) { // shut down before it began
				t.Error(err)
			}
		}
	})
	return where{"tcp": l.Addr().String(), "udp": pc.LocalAddr().String()}
}

func podgateConfig(mode dns.PodMode) dns.Config {
	return dns.Config{
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/64")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		TTL:          30 * time.Second,
		Pods:         mode,
	}
}

// TestSameAsCoreDNS asks CoreDNS and podgate the same questions about the same
// objects and compares what they say. Differences that are meant are named in
// intended, with their reasons.
func TestSameAsCoreDNS(t *testing.T) {
	st, upstream := objects(), startUpstream(t)
	for _, mode := range []struct {
		name string
		mode dns.PodMode
	}{{"insecure", dns.Insecure}, {"verified", dns.Verified}, {"disabled", dns.Disabled}} {
		t.Run("pods "+mode.name, func(t *testing.T) {
			theirs := dial(t, "tcp", startCoreDNS(t, st, mode.name, upstream))
			ours := dial(t, "tcp", startPodgate(t, st, mode.mode, upstream))
			qs := questions(st)
			same, meant, differ := 0, map[string]int{}, 0
			for _, q := range qs {
				want, got := ask(t, theirs, q), ask(t, ours, q)
				if text(got) == text(want) {
					same++
				} else if why := intended(q, want, got); why != "" {
					meant[why]++
				} else if differ++; differ <= 40 {
					t.Errorf("%s %s\npodgate:\n%s\nCoreDNS:\n%s", q.Name, mdns.TypeToString[q.Qtype], text(got), text(want))
				}
			}
			if len(qs) < 2000 {
				t.Errorf("%d questions are too few", len(qs))
			}
			t.Logf("%d questions: %d answers are the same, %d differ", len(qs), same, differ)
			for why, n := range meant {
				t.Logf("%5d differ as intended: %s", n, why)
			}
		})
	}
}

func dial(t *testing.T, network string, at where) *mdns.Conn {
	t.Helper()
	c, err := mdns.Dial(network, at[network])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func ask(t *testing.T, c *mdns.Conn, q mdns.Question) *mdns.Msg {
	t.Helper()
	m := &mdns.Msg{MsgHdr: mdns.MsgHdr{Id: mdns.Id(), RecursionDesired: true}, Question: []mdns.Question{q}}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := c.WriteMsg(m); err != nil {
		t.Fatalf("%v: %v", q, err)
	}
	a, err := c.ReadMsg()
	if err != nil {
		t.Fatalf("%v: %v", q, err)
	}
	if a.Id != m.Id || len(a.Question) != 1 || a.Question[0] != q {
		t.Fatalf("%v: not its answer: %v", q, a)
	}
	return a
}

// text is the response code and flags, then each section's records in order of
// their text. The SOA's serial is left out, so is RA (podgate always
// recurses), and the case of names other than the answers' owners.
func text(m *mdns.Msg) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s aa=%v tc=%v\n", mdns.RcodeToString[m.Rcode], m.Authoritative, m.Truncated)
	for i, section := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		var lines []string
		for _, rr := range section {
			if soa, ok := rr.(*mdns.SOA); ok {
				soa.Serial = 0
				if strings.HasSuffix(strings.ToLower(soa.Hdr.Name), ".arpa.") {
					soa.Ns, soa.Mbox = ".", "." // CoreDNS makes names up that nobody serves
				}
			}
			line := fmt.Sprintf("  %d %s\n", i, rr)
			if i > 0 {
				line = strings.ToLower(line)
			} else {
				owner := rr.Header().Name
				line = strings.Replace(strings.ToLower(line), strings.ToLower(owner), owner, 1)
			}
			lines = append(lines, line)
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	return b.String()
}
