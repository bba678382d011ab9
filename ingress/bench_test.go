package ingress

import (
	"bufio"
	"context"
	"io"
	"net"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

// BenchmarkProxy is one small response after the other on each of some
// connections, over loopback, for routes that ask for one thing each; client and
// endpoint cost little.
func BenchmarkProxy(b *testing.B) {
	pod, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer pod.Close()
	go func() {
		for {
			c, err := pod.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					for {
						line, err := r.ReadSlice('\n')
						if err != nil {
							return
						}
						if len(line) == 2 {
							break
						}
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello")
				}
			}()
		}
	}()
	for _, way := range []struct {
		name        string
		annotations []string
		want        int // bytes of the answer's body
	}{
		{"plain", nil, 5},
		{"source-range", []string{"whitelist-source-range: 127.0.0.0/8"}, 5},
		{"limit", []string{"limit-rps: 100000000"}, 5},
		{"canary", nil, 5},
		{"rewrite", []string{"rewrite-target: /y"}, 5},
		{"vhost", []string{"upstream-vhost: inner.example"}, 5},
		{"password", []string{"auth-type: basic", "auth-secret: users"}, 5},
		{"cors", []string{"enable-cors: true"}, 5},
		{"affinity", []string{"affinity: cookie"}, 5},
		{"redirect", []string{"permanent-redirect: https://new.example"}, 0},
	} {
		b.Run(way.name, func(b *testing.B) {
			st := state(b, annotated(ingress("shop", "shop.example|Prefix|/|web"), way.annotations...))
			if way.name == "canary" {
				st = state(b, ingress("shop", "shop.example|Prefix|/|web"), annotated(ingress("next", "shop.example|Prefix|/|web"), "canary: true", "canary-weight: 30", "canary-by-header: X-Next"))
			}
			withService(st, "web", endpointAddr(1))
			st.Secrets[kube.Name{Namespace: "ns", Name: "users"}] = &corev1.Secret{Data: map[string][]byte{"auth": []byte("plain:{PLAIN}open\n")}}
			benchmarkProxy(b, st, pod.Addr().String(), way.want)
		})
	}
}

func benchmarkProxy(b *testing.B, st *kube.State, pod string, want int) {
	s := NewServer(Config{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, pod)
	}})
	routes, _ := Compile(nil, st, Config{})
	s.SetRoutes(routes)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go s.Serve(l)
	defer s.Shutdown(context.Background())
	b.SetParallelism(16)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		r := bufio.NewReader(c)
		for pb.Next() {
			io.WriteString(c, "GET /x HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: wrk\r\nAuthorization: Basic cGxhaW46b3Blbg==\r\n\r\n")
			length := 0
			for {
				line, err := r.ReadSlice('\n')
				if err != nil {
					b.Error(err)
					return
				}
				if len(line) == 2 {
					break
				}
				if len(line) > 16 && string(line[:16]) == "Content-Length: " {
					length, _ = strconv.Atoi(string(line[16 : len(line)-2]))
				}
			}
			if _, err := r.Discard(length); err != nil || length != want {
				b.Errorf("%d bytes, %v", length, err)
				return
			}
		}
	})
}

// BenchmarkMatch is routing among a thousand hosts.
func BenchmarkMatch(b *testing.B) {
	var rules []rule
	for i := range 1000 {
		rules = append(rules, rule("h"+strconv.Itoa(i)+".example|Prefix|/a/b|web"))
	}
	st := state(b, ingress("shop", rules...))
	r, _ := Compile(nil, st, Config{})
	b.ReportAllocs()
	for b.Loop() {
		if _, rt := r.match("h77.example", "/a/b/c"); rt == nil {
			b.Fatal("not found")
		}
	}
}
