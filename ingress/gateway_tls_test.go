package ingress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"podgate/kube"
)

// TestMisdirectedRequests: a request for another listener than its connection's.
func TestMisdirectedRequests(t *testing.T) {
	const https = "port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}"
	w := newWorld(t, gw("gw", "{name: any, "+https+"}", "{name: second, hostname: second.org, "+https+"}", "{name: wild, hostname: '*.wild.org', "+https+"}", "{name: fourth, hostname: fourth.wild.org, "+https+"}"),
		httpRoute("one", "hostnames: [one.org], rules: [{"+to("a")+"}]"))
	for _, l := range []string{"second", "wild", "fourth"} {
		w.apply(routeIn("default", "HTTPRoute", l, "parentRefs: [{name: gw, sectionName: "+l+"}], rules: [{"+to("a")+"}]"))
	}
	w.service("default", "a", 1)
	w.secret("default", "cert", "one.org")
	g := newGatewayFront(t, w, map[int]http.Handler{1: named("a")})
	for _, c := range []struct {
		sni, host string
		want      int
	}{
		{"one.org", "one.org", 200}, {"one.org", "second.org", 421}, {"one.org", "unknown.org", 404},
		{"second.org", "second.org", 200}, {"second.org", "one.org", 421}, {"second.org", "unknown.org", 421},
		{"third.wild.org", "third.wild.org", 200}, {"third.wild.org", "fifth.wild.org", 200}, {"third.wild.org", "fourth.wild.org", 421}, {"third.wild.org", "unknown.org", 421},
		{"fourth.wild.org", "fourth.wild.org", 200}, {"fourth.wild.org", "fifth.wild.org", 421},
		{"unknown.org", "one.org", 200}, {"unknown.org", "unknown.org", 404},
	} {
		cl := client(t, g.at(443), func(tr *http.Transport) { tr.TLSClientConfig.ServerName = c.sni })
		answer, _ := get(t, cl, "https://"+c.host+"/")
		if answer.StatusCode != c.want || answer.ProtoMajor != 2 {
			t.Errorf("%s at %s: got %d by %s, want %d", c.host, c.sni, answer.StatusCode, answer.Proto, c.want)
		}
	}
}

func TestListenersHaveTheirCertificates(t *testing.T) {
	w := newWorld(t, gw("gw", "{name: a, hostname: a.org, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: a}]}}", "{name: b, hostname: '*.b.org', port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: b}]}}"))
	want := map[string]*x509.Certificate{"a.org": w.secret("default", "a", "a.org"), "x.y.b.org": w.secret("default", "b", "*.b.org")}
	g := newGatewayFront(t, w, nil)
	dial := func(name string) (*x509.Certificate, error) {
		c, err := tls.Dial("tcp", g.at(443), &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0], nil
	}
	for name, cert := range want {
		if got, err := dial(name); err != nil || !got.Equal(cert) {
			t.Errorf("%s: %v, another certificate", name, err)
		}
	}
	if _, err := dial("c.org"); err == nil {
		t.Error("a name that no listener is for was answered")
	}
	want["a.org"] = w.secret("default", "a", "a.org")
	g.update(t)
	if got, err := dial("a.org"); err != nil || !got.Equal(want["a.org"]) {
		t.Errorf("the certificate was not renewed: %v", err)
	}
}

func TestClientCertificatesOfGateways(t *testing.T) {
	good, bad := newAuthority(t), newAuthority(t)
	w := newWorld(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ca}\ndata:\n  ca.crt: |\n    "+strings.ReplaceAll(pemText(good.cert), "\n", "\n    ")+"\n",
		gwIn("default", "gw", "tls: {frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}}, perPort: [{port: 444, tls: {validation: {mode: AllowInsecureFallback, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}}}, {port: 445, tls: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: none}]}}}]}},",
			"{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}", "{name: b, port: 444, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}", "{name: c, port: 445, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}"),
		httpRoute("r", "rules: [{"+to("a")+"}]"))
	w.service("default", "a", 1)
	w.secret("default", "cert", "h.example")
	g := newGatewayFront(t, w, map[int]http.Handler{1: named("a")})
	ask := func(port uint16, with *authority) error {
		c := client(t, g.at(port), func(tr *http.Transport) {
			if with != nil {
				tr.TLSClientConfig.Certificates = []tls.Certificate{with.issue(t, "me")}
			}
		})
		answer, err := c.Get("https://h.example/")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode != 200 {
				err = errors.New(answer.Status)
			}
		}
		return err
	}
	for _, c := range []struct {
		port uint16
		with *authority
		ok   bool
	}{{443, good, true}, {443, bad, false}, {443, nil, false}, {444, good, true}, {444, bad, true}, {444, nil, true}} {
		if err := ask(c.port, c.with); (err == nil) != c.ok {
			t.Errorf("port %d, certificate %v: %v", c.port, c.with != nil, err)
		}
	}
	if got := said(w.gateway("gw").Conditions, "InsecureFrontendValidationMode"); got != "True ConfigurationChanged" {
		t.Error(got)
	}
	l := w.listener("gw", "c")
	if got := said(l.Conditions, "Accepted") + ", " + said(l.Conditions, "ResolvedRefs"); got != "False NoValidCACertificate, False InvalidCACertificateRef" {
		t.Error(got)
	}
}

func pemText(c *x509.Certificate) string {
	return strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
}

// TestTLSRoutesPassThrough: TLS ends at the endpoint that the server name is for.
func TestTLSRoutesPassThrough(t *testing.T) {
	listen := func(name string) (string, *x509.Certificate) {
		a := newAuthority(t)
		cert := a.issue(t, name, name)
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{ErrorLog: unheard, Handler: named(name)}
		go srv.Serve(l)
		t.Cleanup(func() { srv.Close() })
		return l.Addr().String(), a.cert
	}
	addr, _ := listen("a.org")
	w := newWorld(t, gw("gw", "{name: tls, port: 443, hostname: '*.org', protocol: TLS, tls: {mode: Passthrough}}", "{name: https, port: 443, hostname: mine.org, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}"),
		routeIn("default", "TLSRoute", "t", "parentRefs: [{name: gw}], hostnames: [a.org], rules: [{"+to("a")+"}]"),
		httpRoute("h", "rules: [{"+to("b")+"}]"))
	w.service("default", "a", 1)
	w.service("default", "b", 2)
	w.secret("default", "cert", "mine.org")
	g := newGatewayFront(t, w, map[int]http.Handler{2: named("b")})
	inner := g.cfg.Dial
	g.cfg.Dial = func(ctx context.Context, network, to string) (net.Conn, error) {
		if to == endpointAddr(1).String() {
			to = addr
			return new(net.Dialer).DialContext(ctx, network, to)
		}
		return inner(ctx, network, to)
	}
	c := client(t, g.at(443))
	if _, body := get(t, c, "https://a.org/"); body != "a.org" {
		t.Errorf("got %q, want the endpoint's own TLS", body)
	}
	if _, body := get(t, c, "https://mine.org/"); body != "b" {
		t.Errorf("got %q from the HTTPS listener at the same port", body)
	}
	if answer, err := c.Get("https://b.org/"); err == nil {
		answer.Body.Close()
		t.Error("a name without a TLSRoute was answered")
	}
	s := w.compile().Statuses().TLSRoutes[kube.Name{Namespace: "default", Name: "t"}]
	if got := said(s.Parents[0].Conditions, "Accepted"); got != "True Accepted" {
		t.Error(got)
	}
}

func TestBackendTLSPolicies(t *testing.T) {
	a := newAuthority(t)
	cert := a.issue(t, "b.example", "b.example")
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ErrorLog: unheard, Handler: http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) { io.WriteString(w, in.TLS.ServerName) })}
	go srv.Serve(l)
	defer srv.Close()
	policy := func(name, validation string) string {
		return routeIn("default", "BackendTLSPolicy", name, "targetRefs: [{group: '', kind: Service, name: a}], validation: {"+validation+"}")
	}
	const ca = "caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]"
	for _, c := range []struct{ name, validation, want, accepted, resolved string }{
		{"the right name", "hostname: b.example, " + ca, "200 b.example", "True Accepted", "True ResolvedRefs"},
		{"another name", "hostname: c.example, " + ca, "502", "True Accepted", "True ResolvedRefs"},
		{"an alternative name", "hostname: c.example, subjectAltNames: [{type: Hostname, hostname: b.example}], " + ca, "200 c.example", "True Accepted", "True ResolvedRefs"},
		{"no alternative name", "hostname: b.example, subjectAltNames: [{type: Hostname, hostname: c.example}], " + ca, "502", "True Accepted", "True ResolvedRefs"},
		{"somebody else's signature", "hostname: b.example, wellKnownCACertificates: System", "502", "True Accepted", "True ResolvedRefs"},
		{"no such certificate", "hostname: b.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: none}]", "500", "False NoValidCACertificate", "False InvalidCACertificateRef"},
		{"another kind", "hostname: b.example, caCertificateRefs: [{group: a.b, kind: Pigeon, name: none}]", "500", "False NoValidCACertificate", "False InvalidKind"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ca}\ndata:\n  ca.crt: |\n    "+strings.ReplaceAll(pemText(a.cert), "\n", "\n    ")+"\n",
				gw("gw", http80), httpRoute("r", "rules: [{"+to("a")+"}]"), policy("p", c.validation), policy("late", "hostname: z.example, "+ca))
			w.service("default", "a", 1)
			g := newGatewayFront(t, w, nil)
			g.cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
			}
			answer, body := get(t, client(t, g.at(80)), "http://h/")
			if got := fmt.Sprint(answer.StatusCode); got != c.want && got+" "+body != c.want {
				t.Errorf("got %s %s, want %s", got, body, c.want)
			}
			s := w.compile().Statuses().BackendTLSPolicies
			p := s[kube.Name{Namespace: "default", Name: "p"}].Ancestors[0]
			if got := said(p.Conditions, "Accepted"); got != c.accepted || string(p.AncestorRef.Name) != "gw" {
				t.Errorf("got %s, want %s", got, c.accepted)
			}
			if got := said(p.Conditions, "ResolvedRefs"); got != c.resolved {
				t.Errorf("got %s, want %s", got, c.resolved)
			}
			if got := said(s[kube.Name{Namespace: "default", Name: "late"}].Ancestors[0].Conditions, "Accepted"); got != "False Conflicted" {
				t.Errorf("the younger policy: %s", got)
			}
		})
	}
}
