package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// annotated is Service web with an annotation.
func annotated(name, value string) string {
	return strings.Replace(web(""), "{name: web}", fmt.Sprintf("{name: web, annotations: {%s: %q}}", name, value), 1)
}

// talk writes until the other end answers with a reset.
func talk(t *testing.T, who string, c net.Conn) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		_, err := c.Write([]byte("x"))
		if err == nil {
			c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err = c.Read(make([]byte, 16)); errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
		}
		if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
			return
		}
		if err != nil {
			t.Errorf("%s: got %v, want a reset", who, err)
			return
		}
	}
	t.Errorf("%s: the conversation goes on", who)
}

func TestDrainTimeEndsConversationsByReset(t *testing.T) {
	s := newShop(t)
	s.serve(s.a)
	l := s.b.listen(t, ":8080")
	s.apply(annotated("podgate.dev/drain-time", "1s") + "---" + endpoints(s.b.v4+" ready"))
	client, err := s.c.dial("tcp", vip4+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	s.apply(endpoints(s.a.v4 + " ready"))
	talk(t, "the client", client)
	talk(t, "the endpoint that left", server)
	if who, _ := s.c.ask(vip4 + ":80"); who != s.a.v4 {
		t.Errorf("a new conversation is answered by %s, want %s", who, s.a.v4)
	}
}

func TestLeastConnectionsByRealConnections(t *testing.T) {
	s := newShop(t)
	for _, p := range []*pod{s.a, s.b} {
		p.listen(t, ":8080")
	}
	s.apply(annotated("podgate.dev/load-balance", "least-connections") + "---" + endpoints(s.a.v4+" ready", s.b.v4+" ready"))
	for range 10 {
		c, err := s.c.dial("tcp", vip4+":80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	held := map[string]int{}
	for _, f := range s.plane.Flows() {
		held[f.Backend]++
	}
	if held[s.a.v4+":8080"] != 5 || held[s.b.v4+":8080"] != 5 {
		t.Errorf("got %v, want 5 each", held)
	}
}

func TestPortRangesByRealConnections(t *testing.T) {
	s := newShop(t)
	s.apply(annotated("podgate.dev/port-ranges", "tcp=80-99, udp=53-60") + "---" + endpoints(s.a.v4+" ready"))
	l := s.a.listen(t, ":8099")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s", s.a.v4, c.RemoteAddr())
			c.Close()
		}
	}()
	if who, client := s.c.ask(vip4 + ":99"); who != s.a.v4 || client != s.c.v4 {
		t.Errorf("answered by %s, who saw %s, want %s and %s", who, client, s.a.v4, s.c.v4)
	}
	if who, _ := s.c.ask(vip4 + ":100"); !strings.Contains(who, "refused") {
		t.Errorf("beyond the range: got %s, want a refusal", who)
	}
}
