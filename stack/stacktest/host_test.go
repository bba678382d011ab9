package stacktest

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"podgate/stack"
)

const dualShop = webAndAPI + `
apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  selector: {app: api}
  clusterIPs: [10.96.1.1, "fd00:10:96::1"]
  ipFamilyPolicy: RequireDualStack
  ports: [{port: 80, targetPort: 8080}]
`

func hostPair(t *testing.T) (w *World, web, api *Host) {
	t.Helper()
	w = New(t, stack.Config{})
	w.Apply(dualShop)
	return w, w.Host("web"), w.Host("api")
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Real TCP, HTTP on top of it, through the Service in both families, from the
// question for the gateway's MAC to the last FIN.
func TestHTTPThroughTheService(t *testing.T) {
	w, web, api := hostPair(t)
	body := bytes.Repeat([]byte("podgate "), 1<<17)
	for _, addr := range []struct{ pod, service string }{
		{w.Pod("api").IP().String(), "10.96.1.1"},
		{w.Pod("api").IP6().String(), "fd00:10:96::1"},
	} {
		l := api.Listen(netip.AddrPortFrom(netip.MustParseAddr(addr.pod), 8080))
		server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Client", r.RemoteAddr)
			rw.Write(body)
		})}
		go server.Serve(l)
		defer server.Close()
		client := http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, to string) (net.Conn, error) {
				return web.Dial(ctx, netip.MustParseAddrPort(to))
			},
		}}
		req, err := http.NewRequestWithContext(deadline(t), "GET", "http://"+net.JoinHostPort(addr.service, "80"), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("through %s: %d bytes, %v; want %d", addr.service, len(got), err, len(body))
		}
		client.CloseIdleConnections()
		host, _, _ := net.SplitHostPort(resp.Header.Get("Client"))
		if ip := netip.MustParseAddr(host); ip != w.Pod("web").IP() && ip != w.Pod("web").IP6() {
			t.Errorf("the server sees %s, want the pod's own address", ip)
		}
	}
	for name, n := range w.Counters() {
		if !strings.HasSuffix(name, "-answered") && !strings.HasSuffix(name, "-ignored") && name != "multicast-not-served" && name != "ack-superseded" {
			t.Errorf("%s: got %d, want 0", name, n)
		}
	}
}

func TestARefusedConnectionIsRefused(t *testing.T) {
	w, web, _ := hostPair(t)
	for _, to := range []string{
		"10.96.1.1:80",       // nobody listens in the pod
		"10.96.1.1:81",       // no such port of the Service
		"[fd00:10:96::1]:81", // likewise
	} {
		if c, err := web.Dial(deadline(t), netip.MustParseAddrPort(to)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("dial %s: got %v, %v; want it refused", to, c, err)
		}
	}
	w.Ready(w.Pod("api").Name, false)
	if c, err := web.Dial(deadline(t), netip.MustParseAddrPort("10.96.1.1:80")); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial without endpoints: got %v, %v; want it refused", c, err)
	}
}

// A conversation goes on through configuration changes that do not concern it,
// and stops with the policy that denies it.
func TestAPolicyStopsAConversation(t *testing.T) {
	w, web, api := hostPair(t)
	l := api.Listen(netip.AddrPortFrom(w.Pod("api").IP(), 8080))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	c, err := web.Dial(deadline(t), netip.MustParseAddrPort("10.96.1.1:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echo := func(within time.Duration) error {
		c.SetDeadline(time.Now().Add(within))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 5))
		return err
	}
	if err := echo(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	w.Apply("apiVersion: v1\nkind: Pod\nmetadata: {name: another, labels: {app: api}}\nspec: {containers: [{name: c, image: x}]}\n")
	if err := echo(20 * time.Second); err != nil {
		t.Errorf("after another endpoint appeared: %v", err)
	}
	w.Apply(fuzzPolicy("deny", "{matchLabels: {app: api}}", "Ingress", ""))
	if err := echo(300 * time.Millisecond); err == nil {
		t.Error("the conversation goes on although a policy denies it")
	}
	if n := w.Counters()["policy-ingress-denied{default/deny}"]; n == 0 {
		t.Error("the denial is not counted under the policy's name")
	}
	w.Delete(fuzzPolicy("deny", "{matchLabels: {app: api}}", "Ingress", ""))
	if _, err := io.ReadFull(c, make([]byte, 0)); err != nil {
		t.Error(err)
	}
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Errorf("after the policy was deleted the retransmission did not arrive: %v", err)
	}
}
