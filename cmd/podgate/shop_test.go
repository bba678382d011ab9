package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"podgate/kube"
	"podgate/stack"
	"podgate/stack/link/nstest"
)

// Every command in the README of every example is typed as it stands there;
// one that begins with "!" has to fail.
func TestExampleREADMEsCommandsRun(t *testing.T) {
	nstest.Need(t, "curl")
	pages, err := filepath.Glob("../../examples/*/README.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no example found: %v", err)
	}
	block := regexp.MustCompile("(?s)```sh\n(.*?)```")
	for _, page := range pages {
		t.Run(filepath.Base(filepath.Dir(page)), func(t *testing.T) {
			text, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			s := newShell(t)
			t.Cleanup(func() { s.run("podgate down") })
			n := 0
			for _, m := range block.FindAllStringSubmatch(string(text), -1) {
				for _, line := range strings.Split(strings.TrimSpace(m[1]), "\n") {
					n++
					cmd, fails := strings.CutPrefix(line, "! ")
					if r := s.run(cmd); (r.code != 0) != fails {
						t.Fatalf("%s\nexit code %d\n%s%s", line, r.code, r.out, r.errOut)
					}
				}
			}
			if n == 0 {
				t.Error("the README has no commands")
			}
		})
	}
}

func TestExampleManifestsHaveNoProblems(t *testing.T) {
	dirs, err := filepath.Glob("../../examples/*/*.yaml")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no example found: %v", err)
	}
	seen := map[string]bool{}
	for _, f := range dirs {
		dir := filepath.Dir(f)
		if seen[dir] {
			continue
		}
		seen[dir] = true
		cfg, _, err := loadConfig(nil, "", []string{dir})
		if err != nil {
			t.Fatal(err)
		}
		m, problems := kube.Load([]string{dir}, strings.NewReader(""))
		all, _ := checkObjects(cfg, m, problems)
		for _, p := range all {
			t.Errorf("%s: %s", dir, p)
		}
	}
}

// What the issue of the main job promises of the shop.
func TestShopWorks(t *testing.T) {
	for _, tool := range []string{"curl", "dig", "ping"} {
		nstest.Need(t, tool)
	}
	s := newShell(t)
	s.up("examples/shop")
	webPods := strings.Fields(s.must("podgate get pods -n shop -o name | grep web"))
	if len(webPods) != 2 {
		t.Fatalf("got web pods %v, want 2", webPods)
	}
	web := strings.TrimPrefix(webPods[0], "pod/")

	t.Run("the Ingress spreads over both front ends and says who asked", func(t *testing.T) {
		s := s.in(t)
		pods := map[string]bool{}
		for range 10 {
			var a reply
			out := s.must("curl -s -H 'Host: shop.example' -H 'Accept: application/json' http://127.0.0.1:8080/x")
			if err := json.Unmarshal([]byte(out), &a); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			pods[a.Pod] = true
			if a.ForwardedFor != "127.0.0.1" || a.Path != "/x" || a.Host != "shop.example" {
				t.Errorf("got forwarded for %q, path %q, host %q", a.ForwardedFor, a.Path, a.Host)
			}
			if a.Upstream == nil || !strings.HasPrefix(a.Upstream.Pod, "api-") || !strings.HasPrefix(a.Upstream.Database, "db-0 answers 10.244.") {
				t.Errorf("the chain web, api, db is broken: %s", out)
			}
		}
		if len(pods) != 2 {
			t.Errorf("answers came from %v, want two pods", pods)
		}
	})
	t.Run("a pod sees the address of the pod that asks it", func(t *testing.T) {
		s := s.in(t)
		ip := strings.Fields(s.must("podgate exec -n shop batch -- hostname -I"))[0]
		got := s.must("podgate exec -n shop batch -- curl -4 -s http://web/clientip")
		if !strings.HasPrefix(got, ip+":") {
			t.Errorf("web saw %s, want %s", got, ip)
		}
	})
	t.Run("over IPv6 too", func(t *testing.T) {
		s := s.in(t)
		if got := s.must("podgate exec -n shop batch -- curl -6 -s http://web/clientip"); !strings.HasPrefix(got, "[fd00:10:244::") {
			t.Errorf("web saw %s, want an IPv6 pod address", got)
		}
	})
	t.Run("trace says where a request goes", func(t *testing.T) {
		s := s.in(t)
		if out := s.must("podgate trace http://shop.example/x"); !strings.Contains(out, "of Ingress shop/") || !strings.Contains(out, "2 endpoints in turn") {
			t.Errorf("got %s", out)
		}
		if r := s.run("podgate trace http://other.example/"); r.code != 1 || !strings.Contains(r.out, "answered 404 by podgate") {
			t.Errorf("a host that nobody has: exit code %d, %s", r.code, r.out)
		}
	})
	t.Run("the front door is open to pods", func(t *testing.T) {
		s := s.in(t)
		for _, url := range []string{"http://10.244.0.3/x", "http://[fd00:10:244::3]/x", "https://10.244.0.3/x"} {
			if got := s.must("podgate exec -n shop-data db-0 -- curl -gsk -m 20 -H 'Host: shop.example' " + url); !strings.Contains(got, "web-") {
				t.Errorf("%s: got %s", url, got)
			}
		}
	})
	t.Run("DNS answers over UDP and TCP", func(t *testing.T) {
		s := s.in(t)
		for _, opt := range []string{"", "+tcp"} {
			if got := s.must("podgate exec -n shop batch -- dig +short +search " + opt + " web"); !strings.HasPrefix(got, "10.96.") {
				t.Errorf("dig %s web: got %q", opt, got)
			}
		}
		if got := s.must("podgate exec -n shop-data db-0 -- dig +short db-0.db.shop-data.svc.cluster.local"); !strings.HasPrefix(got, "10.244.") {
			t.Errorf("the StatefulSet's pod name: got %q", got)
		}
	})
	t.Run("denied traffic times out, is counted under its policy, and trace says so", func(t *testing.T) {
		s := s.in(t)
		until(t, "there is a drop under shop/default-deny", func() bool {
			if r := s.run("podgate exec -n shop batch -- curl -s -m 1 http://api"); r.code != 28 {
				t.Errorf("curl to a denied Service: exit code %d, want 28 (timeout)\n%s%s", r.code, r.out, r.errOut)
			}
			var drops []stack.DropRecord
			if err := json.Unmarshal([]byte(s.must("podgate flows --dropped --pod shop/batch -o json")), &drops); err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(drops, func(d stack.DropRecord) bool {
				return d.Reason == "policy-egress-denied" && strings.Contains(strings.Join(d.Policies, " "), "shop/default-deny")
			})
		})
		if out := s.must("podgate status"); !regexp.MustCompile(`policy-egress-denied\{shop/[a-z-]+\}`).MatchString(out) {
			t.Errorf("status counts no denial under a policy's name:\n%s", out)
		}
		if r := s.run("podgate trace -n shop batch tcp api:80"); r.code != 1 || !strings.Contains(r.out, "shop/default-deny") {
			t.Errorf("trace: exit code %d\n%s%s", r.code, r.out, r.errOut)
		}
		if r := s.run(fmt.Sprintf("podgate trace -n shop %s tcp api:80", web)); r.code != 0 {
			t.Errorf("trace of allowed traffic: exit code %d\n%s%s", r.code, r.out, r.errOut)
		}
	})
	t.Run("a new policy cuts what it denies, deleting it lets it through again", func(t *testing.T) {
		s := s.in(t)
		f := write(t, "deny.yaml", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: lock-db, namespace: shop-data}\nspec:\n  podSelector: {}\n  policyTypes: [Egress]\n")
		s.must("podgate exec -n shop-data db-0 -- ping -c1 -W20 10.244.0.1")
		lookup := "podgate exec -n shop-data db-0 -- dig +short web.shop.svc.cluster.local"
		s.must(lookup)
		if got := s.must("podgate apply -f " + f); got != "networkpolicy.networking.k8s.io/lock-db created\n" {
			t.Errorf("apply said %q", got)
		}
		if r := s.run(lookup + " +time=1 +tries=1"); r.code == 0 {
			t.Errorf("dig went through in spite of the policy: %s", r.out)
		}
		if got := s.must("podgate delete -f " + f); got != "networkpolicy.networking.k8s.io \"lock-db\" deleted\n" {
			t.Errorf("delete said %q", got)
		}
		s.must(lookup)
	})
	t.Run("node port and load balancer answer on loopback", func(t *testing.T) {
		s := s.in(t)
		for _, port := range []string{"30080", "8081"} {
			if got := s.must("curl -s -m 20 http://127.0.0.1:" + port + "/hostname"); !strings.HasPrefix(got, "web-") {
				t.Errorf("port %s: got %q", port, got)
			}
		}
	})
	t.Run("WebSocket through the Ingress", func(t *testing.T) {
		s := s.in(t)
		ask := "curl -s -m 2 -i -N -H 'Host: shop.example' -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Origin: http://shop.example' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' http://127.0.0.1:8080/ws" // which does not end by itself
		until(t, "switched protocols", func() bool { return strings.HasPrefix(s.run(ask).out, "HTTP/1.1 101") })
	})
	t.Run("a second up with the same name is refused", func(t *testing.T) {
		s := s.in(t)
		if r := s.run("podgate up --detach examples/shop"); r.code != 1 || !strings.Contains(r.errOut, `instance "default" is already running`) {
			t.Errorf("exit code %d: %s", r.code, r.errOut)
		}
	})
	t.Run("exec of what is not there says so with 127", func(t *testing.T) {
		s := s.in(t)
		if r := s.run("podgate exec -n shop batch -- /no/such/command"); r.code != 127 || !strings.Contains(r.errOut, "/no/such/command") {
			t.Errorf("got exit code %d: %s", r.code, r.errOut)
		}
	})
	t.Run("exec passes exit code and standard input", func(t *testing.T) {
		s := s.in(t)
		if r := s.runWith("podgate exec -i -n shop batch -- sh -c 'cat; exit 7'", "hello"); r.code != 7 || r.out != "hello" {
			t.Errorf("got exit code %d, output %q; want 7, hello: %s", r.code, r.out, r.errOut)
		}
	})
}
