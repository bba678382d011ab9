package kube

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

func TestLoadProblems(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"unknown field", `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  foo: 1
`, `f.yaml:6: Service shop/web: spec.foo: strict decoding error: unknown field "spec.foo"`},
		{"unknown field in a list, with a suggestion", `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ports:
  - port: 80
  - port: 81
    targetport: 8080
`, `f.yaml:9: Service default/web: spec.ports[1].targetport: strict decoding error: unknown field "spec.ports[1].targetport" (did you mean "targetPort"?)`},
		{"duplicate key", `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ports:
  - port: 80
    port: 81
`, `f.yaml:8: Service default/web: spec.ports[0].port: strict decoding error: key "port" already set in map`},
		{"wrong type", `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ports:
  - port: 80
  - port: eighty
`, `f.yaml:8: Service default/web: spec.ports[1].port: json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32`},
		{"wrong version", `
apiVersion: extensions/v1beta1
kind: Deployment
metadata: {name: web}
`, `f.yaml:2: Deployment web: no matches for kind "Deployment" in version "extensions/v1beta1" (did you mean apps/v1?)`},
		{"misspelt kind", `
apiVersion: apps/v1
kind: Deploymnet
metadata: {name: web}
`, `f.yaml:2: Deploymnet web: no matches for kind "Deploymnet" in version "apps/v1" (did you mean Deployment, apps/v1?)`},
		{"kind in small letters", `
apiVersion: v1
kind: service
metadata: {name: web}
`, `f.yaml:2: service web: no matches for kind "service" in version "v1" (did you mean Service, v1?)`},
		{"no kind", `
apiVersion: v1
metadata: {name: web}
`, `f.yaml:2: kind: Required value`},
		{"no apiVersion", `
kind: Ingress
metadata: {name: web}
`, `f.yaml:2: Ingress web: apiVersion: Required value (did you mean networking.k8s.io/v1?)`},
		{"not an object", `hello`, `f.yaml:1: not a Kubernetes object: json: cannot unmarshal string into Go value of type kube.typeMeta`},
		{"no name", `
apiVersion: v1
kind: Pod
metadata: {labels: {a: b}}
`, `f.yaml:2: Pod: metadata.name: Required value: name or generateName is required`},
		{"generateName", `
apiVersion: v1
kind: Pod
metadata: {generateName: x-}
`, `f.yaml:2: Pod: metadata.generateName: cannot use generate name with apply`},
		{"broken YAML", "apiVersion: v1\nkind: [\n", `f.yaml:2: yaml: line 2: did not find expected node content`},
		{"broken base64", `
apiVersion: v1
kind: Secret
metadata: {name: s}
data:
  good: aGVsbG8=
  bad: "not base64!"
`, `f.yaml:7: Secret default/s: data[bad]: illegal base64 data at input byte 3`},
		{"ignored, once", `
apiVersion: batch/v1
kind: Job
metadata: {name: a}
---
apiVersion: batch/v1
kind: Job
metadata: {name: b}
`, `f.yaml:2: Job a: warning: ignored: podgate has nothing to do with kind Job of batch/v1 (2 objects)`},
		{"a Service of somebody else's", `
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: a}
`, `f.yaml:2: Service a: warning: ignored: podgate has nothing to do with kind Service of serving.knative.dev/v1`},
		{"twice", `
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Namespace
metadata: {name: a}
`, `f.yaml:6: Namespace a: warning: defined twice, also at f.yaml:2: the last one is used`},
		{"in a List", `
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: a}
- apiVersion: v1
  kind: Namespace
  metadata: {name: b}
  spec:
    bad: 1
`, `f.yaml:12: Namespace b: spec.bad: strict decoding error: unknown field "spec.bad"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, ps := LoadBytes("f.yaml", []byte(c.in))
			if len(ps) != 1 {
				t.Fatalf("got %d problems %v, want one", len(ps), ps)
			}
			if got := ps[0].String(); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestLoadDocuments(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"several", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n", "Namespace a, Namespace b"},
		{"empty ones and comments", "---\n# nothing\n---\n\n--- # here\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n", "Namespace a"},
		{"a marker in a block", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  x: |\n    ---\n    y\n", "ConfigMap default/a"},
		{"JSON, concatenated", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"b"}}`, "Namespace a, Namespace b"},
		{"List", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: a}}\n", "Namespace a, ConfigMap a/b"},
		{"typed List", "apiVersion: v1\nkind: ConfigMapList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n", "ConfigMap default/a, ConfigMap default/b"},
		{"namespaces first", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, namespace: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n", "Namespace a, ConfigMap a/b"},
		{"byte order mark and CRLF", "\xef\xbb\xbfapiVersion: v1\r\nkind: Namespace\r\nmetadata:\r\n  name: a\r\n---\r\napiVersion: v1\r\nkind: Namespace\r\nmetadata: {name: b}\r\n", "Namespace a, Namespace b"},
		{"anchors", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: &l {x: why}, annotations: *l}\n", "ConfigMap default/a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, ps := LoadBytes("f", []byte(c.in))
			for _, p := range ps {
				t.Errorf("unexpected: %s", p)
			}
			var got []string
			for _, o := range m.Objects {
				got = append(got, o.Kind()+" "+o.Name().String())
			}
			if got := strings.Join(got, ", "); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestLoadFolders(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		base := strings.TrimLeft(strings.NewReplacer(".", "-", "/", "-").Replace(name), "-")
		if err := os.WriteFile(path, []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: "+base+"}\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"b.yaml", "a/z.yml", "a/c.json", "README.md", ".hidden.yaml", ".git/x.yaml", "podgate.yaml", "empty/notes.txt"} {
		write(name)
	}
	stdin := strings.NewReader("apiVersion: v1\nkind: Namespace\nmetadata: {name: piped}\n")
	m, ps := Load([]string{dir, "-", filepath.Join(dir, "README.md"), filepath.Join(dir, "none.yaml"), filepath.Join(dir, "empty")}, stdin)
	var got []string
	for _, o := range m.Objects {
		got = append(got, o.Name().Name)
	}
	if got, want := strings.Join(got, " "), "a-c-json a-z-yml b-yaml piped README-md"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var said []string
	for _, p := range ps {
		said = append(said, strings.ReplaceAll(p.String(), dir, "DIR"))
	}
	want := []string{
		"DIR/none.yaml: no such file or directory",
		"DIR/empty: warning: no manifests in this folder (.yaml, .yml or .json)",
	}
	if strings.Join(said, "\n") != strings.Join(want, "\n") {
		t.Errorf("got problems\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
	}
}

func TestOldIngressIsConverted(t *testing.T) {
	for _, v := range []string{"extensions/v1beta1", "networking.k8s.io/v1beta1"} {
		objs := load(t, `
apiVersion: `+v+`
kind: Ingress
metadata: {name: web}
spec:
  backend: {serviceName: other, servicePort: http}
  tls: [{hosts: [a.example], secretName: cert}]
  rules:
  - host: a.example
    http:
      paths:
      - path: /x
        backend: {serviceName: web, servicePort: 80}
      - path: /y
        pathType: Exact
        backend: {serviceName: web, servicePort: 81}
`)
		ing := objs[0].API.(*networkingv1.Ingress)
		paths := ing.Spec.Rules[0].HTTP.Paths
		if got := *paths[0].PathType; got != networkingv1.PathTypeImplementationSpecific {
			t.Errorf("%s: got pathType %s", v, got)
		}
		if paths[0].Backend.Service.Port.Number != 80 || *paths[1].PathType != networkingv1.PathTypeExact ||
			ing.Spec.DefaultBackend.Service.Port.Name != "http" || ing.Spec.TLS[0].SecretName != "cert" || ing.APIVersion != "networking.k8s.io/v1" {
			t.Errorf("%s: got %+v", v, ing)
		}
	}
}

func TestStringDataIsMerged(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {x: aGVsbG8=, z: aGVsbG8=}\nstringData: {z: world}\n"))
	secret := s.State().Secrets[Name{"default", "a"}]
	if string(secret.Data["x"]) != "hello" || string(secret.Data["z"]) != "world" || secret.Type != corev1.SecretTypeOpaque {
		t.Errorf("got %v", secret)
	}
}

func TestLoadBytesInPutsObjectsIntoTheNamespace(t *testing.T) {
	m, ps := LoadBytesIn("shop", "f", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: other}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: one}\n"))
	var got []Name
	for _, o := range m.Objects {
		got = append(got, o.Name())
	}
	if want := []Name{{"", "one"}, {"shop", "a"}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if len(ps) != 1 || ps[0].Field != "metadata.namespace" || ps[0].Object != (Name{"other", "b"}) {
		t.Errorf("got problems %v, want one for other/b", ps)
	}
}
