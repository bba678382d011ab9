package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"podgate/stack/link/nstest"
)

// h3get asks at addr for a URL by HTTP/3, and prints who vouches for it, how it
// was answered, and the answer.
func h3get(addr, url string) int {
	var cert string
	tr := &http3.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(cs tls.ConnectionState) error {
			cert = strings.Join(cs.PeerCertificates[0].DNSNames, ",")
			return nil
		}},
		Dial: func(ctx context.Context, _ string, cfg *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, addr, cfg, q)
		},
	}
	defer tr.Close()
	answer, err := (&http.Client{Transport: tr, Timeout: runTime / 2}).Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(cert, answer.Proto, answer.Status)
	io.Copy(os.Stdout, answer.Body)
	return 0
}

// tlsSecret is a Secret with a certificate for a name.
func tlsSecret(t *testing.T, secret, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, b []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s}\ntype: kubernetes.io/tls\ndata: {tls.crt: %s, tls.key: %s}\n---\n", secret, text("CERTIFICATE", der), text("PRIVATE KEY", private))
}

// TestHTTP3: from the host and from pods, by Ingress and Gateway, into a pod; and
// HTTPS alone where it cannot be or is not wanted.
func TestHTTP3(t *testing.T) {
	nstest.Need(t, "curl")
	manifests := liveGateway[:strings.Index(liveGateway, "apiVersion: gateway")] +
		tlsSecret(t, "web", "web.example") + tlsSecret(t, "gw", "gw.example") + `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  tls: [{hosts: [web.example], secretName: web}]
  rules: [{host: web.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  gatewayClassName: podgate
  listeners: [{name: own, port: 9443, protocol: HTTPS, hostname: gw.example, tls: {certificateRefs: [{name: gw}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{name: gw}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
`
	s := newShell(t)
	file := write(t, "app.yaml", manifests)
	s.up(file)
	for _, c := range []struct{ line, want string }{
		{"h3get 127.0.0.1:8443 https://web.example/hostname", "web.example HTTP/3.0 200 OK\nweb"},
		{"h3get 127.0.0.1:8443 https://web.example/clientip", "10.244.0.3:"},
		{"h3get 127.0.0.1:9443 https://gw.example/hostname", "gw.example HTTP/3.0 200 OK\nweb"},
		{"podgate exec web -- h3get 10.244.0.3:443 https://web.example/hostname", "web.example HTTP/3.0 200 OK\nweb"},
		{"podgate exec web -- h3get [fd00:10:244::3]:443 https://web.example/hostname", "web.example HTTP/3.0 200 OK\nweb"},
		{"podgate exec web -- h3get 10.244.0.3:9443 https://gw.example/hostname", "gw.example HTTP/3.0 200 OK\nweb"},
		{"curl -sk -D- --resolve web.example:8443:127.0.0.1 https://web.example:8443/", `alt-svc: h3=":8443"; ma=86400`},
		{"curl -sk -D- --resolve gw.example:9443:127.0.0.1 https://gw.example:9443/", `alt-svc: h3=":9443"; ma=86400`},
		{"podgate exec web -- curl -sk -D- --resolve web.example:443:10.244.0.3 https://web.example/", `alt-svc: h3=":443"; ma=86400`},
		{"podgate status", "127.0.0.1:8443/udp"},
		{"podgate status", "127.0.0.1:9443/udp"},
	} {
		if out := s.must(c.line); !strings.Contains(out, c.want) {
			t.Errorf("%s: want %q in\n%s", c.line, c.want, out)
		}
	}
	if r := s.run("h3get 127.0.0.1:9443 https://web.example/"); r.code == 0 {
		t.Errorf("a name that no listener of the Gateway is for: got %s", r.out)
	}
	s.must("podgate delete -f " + write(t, "gw.yaml", "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gw}\n"))
	until(t, "the Gateway's port is free", func() bool {
		pc, err := net.ListenPacket("udp", "127.0.0.1:9443")
		if err == nil {
			pc.Close()
		}
		return err == nil
	})
	s.must("podgate down")

	taken, err := net.ListenPacket("udp", "127.0.0.1:8443")
	if err != nil {
		t.Fatal(err)
	}
	const plain = "curl -sk -D- --resolve web.example:8443:127.0.0.1 https://web.example:8443/hostname"
	s.up(file)
	if out := s.must("podgate status"); !strings.Contains(out, "cannot listen: address already in use") {
		t.Errorf("status does not say that there is no HTTP/3:\n%s", out)
	}
	if out := s.must(plain); !strings.Contains(out, "web") || strings.Contains(out, "alt-svc") {
		t.Errorf("HTTPS alone: got\n%s", out)
	}
	s.must("podgate down")
	taken.Close()

	s.up("--set ingress.http3=false " + file)
	if out := s.must("podgate status") + s.must(plain); strings.Contains(out, "/udp") || strings.Contains(out, "alt-svc") {
		t.Errorf("it was switched off, and is there:\n%s", out)
	}
}
