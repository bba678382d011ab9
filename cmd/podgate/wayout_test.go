package main

import (
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"podgate/stack/link/nstest"
)

// The way out goes to who is outside, with their refusals, and not to the host
// itself, its loopback or metadata addresses. Names outside are resolved there.
func TestTheWayOut(t *testing.T) {
	for _, tool := range []string{"curl", "dig", "nc", "ping", "traceroute"} {
		nstest.Need(t, tool)
	}
	far := outsider(t)
	var ln net.Listener
	var pc, names net.PacketConn
	far.Do(func() (err error) {
		if ln, err = net.Listen("tcp", "198.51.100.7:7000"); err != nil {
			return err
		}
		if pc, err = net.ListenPacket("udp", "198.51.100.7:7000"); err != nil {
			return err
		}
		names, err = net.ListenPacket("udp", "198.51.100.7:53")
		return err
	})
	host, err := net.Listen("tcp", ":7777") // what the host has is not for pods
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nhello "+c.RemoteAddr().String())
			c.Close()
		}
	}()
	go echoPackets(pc)
	upstream := &dns.Server{PacketConn: names, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		if q.Question[0].Name == "www.example.com." && q.Question[0].Qtype == dns.TypeA {
			rr, _ := dns.NewRR("www.example.com. 60 IN A 198.51.100.7")
			a.Answer = append(a.Answer, rr)
		}
		w.WriteMsg(a)
	})}
	go upstream.ActivateAndServe()
	t.Cleanup(func() { upstream.Shutdown(); pc.Close(); ln.Close() })

	s := newShell(t)
	s.up("--set ingress.http= --set ingress.https= --set dns.upstreams=198.51.100.7 " + write(t, "app.yaml", goodPod))
	in := "podgate exec -i ok -- "
	for _, c := range []struct{ what, cmd, want string }{
		{"TCP by name", "curl -s -m 20 http://www.example.com:7000", "hello 192.0.2.1:"},
		{"UDP", "sh -c 'echo hi | nc -u -W 1 -w 20 198.51.100.7 7000'", "hi"},
		{"a long ping", "ping -c1 -W20 -s 20000 10.244.0.1", "1 received"},
	} {
		if r := s.run(in + c.cmd); !strings.Contains(r.out, c.want) {
			t.Errorf("%s: want %q, got %+v", c.what, c.want, r)
		}
	}
	for what, addr := range map[string]string{
		"a port that nobody has": "198.51.100.7:9", "the host": "192.0.2.1:7777", "the gateway": "10.244.0.1:7777", "metadata": "169.254.169.254:80",
	} {
		if r := s.run(in + "curl -s -m 20 http://" + addr); r.code != 7 {
			t.Errorf("%s is not refused: %+v", what, r)
		}
	}
	run := func(args ...string) string { return s.run(in + "traceroute " + strings.Join(args, " ")).out }
	hops, out := nstest.Traceroute("198.51.100.7", run, "-q", "1", "-m", "3", "-T")
	if !slices.Equal(hops, []string{"10.244.0.1", "198.51.100.7"}) {
		t.Errorf("traceroute:\n%s", out)
	}
}
