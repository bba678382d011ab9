package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const goodPod = "apiVersion: v1\nkind: Pod\nmetadata: {name: ok}\nspec:\n  containers: [{name: c, image: podgate.dev/workload, args: [pause]}]\n---\n"

// Every mistake gets a line that names file, object and field. What is left of
// the manifests is still run; where nothing is left, nothing is started.
func TestMistakesInManifestsAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		manifest string
		want     []string // in one line of `check`
	}{
		"unknown field":      {"apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  port: 80\n", []string{"app.yaml", "Service", "default/web", "spec.port", "unknown field"}},
		"wrong kind":         {"apiVersion: v1\nkind: Pood\nmetadata: {name: web}\n", []string{"app.yaml", "Pood"}},
		"missing port":       {"apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n", []string{"app.yaml", "Service", "default/web", "spec.ports"}},
		"bad port":           {"apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports: [{port: 70000}]\n", []string{"app.yaml", "default/web", "spec.ports[0].port", "70000"}},
		"duplicate address":  {"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.7.7, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {clusterIP: 10.96.7.7, ports: [{port: 80}]}\n", []string{"app.yaml", "default/b", "spec.clusterIP", "10.96.7.7", "already allocated"}},
		"address outside":    {"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 192.0.2.1, ports: [{port: 80}]}\n", []string{"default/a", "spec.clusterIP", "192.0.2.1"}},
		"except outside":     {"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [192.0.2.0/24]}}]}]}\n", []string{"NetworkPolicy", "default/p", "spec.ingress[0].from[0].ipBlock.except[0]", "192.0.2.0/24"}},
		"not YAML":           {"apiVersion: v1\nkind: [Service\n", []string{"app.yaml"}},
		"pathType is needed": {"apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i}\nspec: {rules: [{http: {paths: [{path: /, backend: {service: {name: a, port: {number: 80}}}}]}}]}\n", []string{"Ingress", "default/i", "spec.rules[0].http.paths[0].pathType"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShell(t)
			f := write(t, "app.yaml", goodPod+c.manifest)
			r := s.run("podgate check " + f)
			if r.code != 1 {
				t.Errorf("check: exit code %d, want 1\n%s", r.code, r.out)
			}
			if !oneLineHas(r.out, c.want) {
				t.Errorf("no line of check has all of %q:\n%s", c.want, r.out)
			}
			alone := write(t, "app.yaml", c.manifest)
			if name == "duplicate address" {
				return // one of the two objects is good
			}
			r = s.run("podgate up --detach " + alone)
			if r.code != 1 || !oneLineHas(r.errOut, c.want) {
				t.Errorf("up with nothing usable: exit code %d, want 1 and the problem\n%s", r.code, r.errOut)
			}
			if left, _ := filepath.Glob(filepath.Join(envOf(s, "XDG_RUNTIME_DIR"), "podgate", "*")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func oneLineHas(text string, parts []string) bool {
	for _, line := range strings.Split(text, "\n") {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			return true
		}
	}
	return false
}

func envOf(s *shell, key string) (value string) {
	for _, kv := range s.env {
		if v, ok := strings.CutPrefix(kv, key+"="); ok {
			value = v
		}
	}
	return value
}

func TestASelectorThatMatchesNothingIsAWarning(t *testing.T) {
	s := newShell(t)
	f := write(t, "app.yaml", goodPod+"apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: nobody}, ports: [{port: 80}]}\n")
	r := s.run("podgate check " + f)
	if r.code != 0 || !oneLineHas(r.out, []string{"arning", "default/web", "spec.selector"}) {
		t.Errorf("exit code %d, want 0 and a warning\n%s", r.code, r.out)
	}
}

func TestABrokenObjectDoesNotHoldUpTheRest(t *testing.T) {
	s := newShell(t)
	f := write(t, "app.yaml", goodPod+"apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  port: 80\n")
	s.up(f)
	if got := s.must("podgate get pods"); !strings.Contains(got, "ok") || !strings.Contains(got, "Running") {
		t.Errorf("the good pod does not run:\n%s", got)
	}
	if r := s.run("podgate get services web"); r.code != 1 || !strings.Contains(r.errOut, "NotFound") {
		t.Errorf("the broken Service is there: exit code %d\n%s%s", r.code, r.out, r.errOut)
	}
}

func TestWhatCannotRunSaysWhy(t *testing.T) {
	s := newShell(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	good := write(t, "app.yaml", goodPod)
	for line, want := range map[string]struct {
		code int
		text string
	}{
		"podgate up --detach /no/such/file": {1, "/no/such/file"},
		"podgate up":                        {2, "name manifests"},
		"podgate up --detach --set ingress.http=" + taken.Addr().String() + " " + good: {1, "address already in use"},
		"podgate up --detach --set pods.mtu=12 " + good:                                {1, "pods.mtu"},
		"podgate --name Bad! up " + good:                                               {2, "--name"},
		"podgate up --bad-flag " + good:                                                {2, "unknown flag"},
		"podgate get pods":                                                             {1, `no instance "default" is running`},
		"podgate down":                                                                 {1, `no instance "default" is running`},
		"podgate get nothings":                                                         {2, "unknown kind"},
		"podgate trace web tcp 10.0.0.1":                                               {2, "DST:PORT"},
		"podgate exec web ls":                                                          {2, "--"},
		"podgate apply -f /no/such/file":                                               {1, "/no/such/file"},
		"podgate apply":                                                                {2, "name manifests with -f"},
		"podgate frobnicate":                                                           {2, "unknown command"},
		"podgate up --detach --config /no/such.yaml " + good:                           {1, "/no/such.yaml"},
		"podgate workload connect 127.0.0.1:1 --timeout 1s":                            {1, "REFUSED"},
		"PODGATE_DNS_TTL=never podgate config":                                         {1, "PODGATE_DNS_TTL"},
		"podgate up --detach " + filepath.Join(t.TempDir()):                            {1, "nothing to run"},
		"podgate check " + good + " && podgate up --detach --set pods.attach=smoke " + good:   {1, "pods.attach"},
		"podgate up --detach --set egress.mode=none --set pods.cidrs=10.0.0.0/8,x/y " + good:  {1, "pods.cidrs"},
		"podgate up --detach --set services.cidrs=10.244.0.0/16 " + good + " && podgate down": {1, "overlaps"},
	} {
		r := s.run(line)
		if r.code != want.code || !strings.Contains(r.errOut, want.text) {
			t.Errorf("%s\nexit code %d, want %d; stderr, want %q:\n%s", line, r.code, want.code, want.text, r.errOut)
		}
		if strings.Count(r.errOut, "\n") > 3 {
			t.Errorf("%s: an error of more than a line or two:\n%s", line, r.errOut)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(envOf(s, "XDG_RUNTIME_DIR"), "podgate")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Two rooms see that a name leads nowhere; one line says so.
func TestCheckSaysEverythingOnce(t *testing.T) {
	s := newShell(t)
	f := write(t, "app.yaml", "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i}\nspec:\n  tls: [{hosts: [a.example], secretName: none}]\n"+
		"  rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: gone, port: {number: 80}}}}]}}]\n")
	out := s.must("podgate check " + f)
	for _, what := range []string{`no Service "gone"`, `no Secret "none"`} {
		if n := strings.Count(out, what); n != 1 {
			t.Errorf("%s: said %d times, want once:\n%s", what, n, out)
		}
	}
}

// What of an Ingress has no effect is said when it is applied; one of a class that
// nobody has is not served, and has no address.
func TestApplySaysWhatOfAnIngressHasNoEffect(t *testing.T) {
	s := newShell(t)
	s.up(write(t, "app.yaml", goodPod))
	const doc = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i, annotations: {nginx.ingress.kubernetes.io/server-snippet: x}}\nspec: {defaultBackend: {service: {name: none, port: {number: 80}}}}\n"
	out := s.must("podgate apply -f " + write(t, "i.yaml", doc))
	for _, want := range [][]string{
		{"default/i", "nginx.ingress.kubernetes.io/server-snippet", "has no effect"},
		{"default/i", "spec.defaultBackend.service.name", `no Service "none"`},
	} {
		if !oneLineHas(out, want) {
			t.Errorf("no line of apply has all of %q:\n%s", want, out)
		}
	}
	if out := s.must("podgate get ingress i -o yaml"); !strings.Contains(out, "ip: 127.0.0.1") || !strings.Contains(out, "port: 8443") {
		t.Errorf("its status has no address with ports:\n%s", out)
	}
	out = s.must("podgate apply -f " + write(t, "i.yaml", strings.Replace(doc, "spec: {", "spec: {ingressClassName: nobodys, ", 1)))
	if !oneLineHas(out, []string{"default/i", "spec.ingressClassName", `"nobodys"`}) {
		t.Errorf("apply does not say that the class is nobody's:\n%s", out)
	}
	if out := s.must("podgate get ingress i -o yaml"); strings.Contains(out, "127.0.0.1") {
		t.Errorf("its status has an address still:\n%s", out)
	}
}
