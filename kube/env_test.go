package kube

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "EMPTY": ""}
	lookup := func(n string) (string, bool) { v, ok := vars[n]; return v, ok }
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"plain", "plain"},
		{"$(A)", "1"},
		{"x$(A)y$(A)", "x1y1"},
		{"$(EMPTY)", ""},
		{"$(NOT)", "$(NOT)"},
		{"$$(A)", "$(A)"},
		{"$$$(A)", "$1"},
		{"$$$$(A)", "$$(A)"},
		{"$A", "$A"},
		{"$(A", "$(A"},
		{"end$", "end$"},
		{"$$", "$"},
	} {
		if got := expand(c.in, lookup); got != c.want {
			t.Errorf("expand(%q): got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestContainerEnv(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {a: "1", b: "2"}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {pw: hush}
---
apiVersion: v1
kind: Service
metadata: {name: redis-primary}
spec: {clusterIP: 10.96.0.11, ports: [{name: main, port: 6379}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: other}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: x}}
spec:
  containers:
  - name: c
    image: x
    command: [run, $(URL)]
    args: [$(REDIS_PRIMARY_SERVICE_PORT), $$(NO)]
    resources: {limits: {memory: 64Mi, cpu: 1500m}}
    envFrom:
    - prefix: C_
      configMapRef: {name: conf}
    - secretRef: {name: sec}
    - configMapRef: {name: gone, optional: true}
    env:
    - {name: C_b, value: over}
    - {name: URL, value: "http://$(REDIS_PRIMARY_SERVICE_HOST):$(C_a)"}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: KEY, valueFrom: {configMapKeyRef: {name: conf, key: a}}}
    - {name: OPT, valueFrom: {secretKeyRef: {name: sec, key: none, optional: true}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
`))
	st := s.State()
	pod := st.Pods[Name{"default", "p"}]
	c := &pod.Spec.Containers[0]
	env, err := ContainerEnv(st, pod, c)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"APP=x",
		"CPU=2",
		"C_a=1",
		"C_b=over",
		"IP=10.244.0.4",
		"KEY=1",
		"MEM=64",
		"REDIS_PRIMARY_PORT=tcp://10.96.0.11:6379",
		"REDIS_PRIMARY_PORT_6379_TCP=tcp://10.96.0.11:6379",
		"REDIS_PRIMARY_PORT_6379_TCP_ADDR=10.96.0.11",
		"REDIS_PRIMARY_PORT_6379_TCP_PORT=6379",
		"REDIS_PRIMARY_PORT_6379_TCP_PROTO=tcp",
		"REDIS_PRIMARY_SERVICE_HOST=10.96.0.11",
		"REDIS_PRIMARY_SERVICE_PORT=6379",
		"REDIS_PRIMARY_SERVICE_PORT_MAIN=6379",
		"URL=http://10.96.0.11:1",
		"pw=hush",
	}
	if !slices.Equal(env, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(env, "\n"), strings.Join(want, "\n"))
	}
	command, args := ExpandCommand(c, env)
	if got, want := strings.Join(append(command, args...), " "), "run http://10.96.0.11:1 6379 $(NO)"; got != want {
		t.Errorf("got command %q, want %q", got, want)
	}

	broken := c.DeepCopy()
	broken.EnvFrom = append(broken.EnvFrom, corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "gone"}}})
	if _, err := ContainerEnv(st, pod, broken); err == nil || err.Error() != `secret "gone" not found` {
		t.Errorf("got %v, want the missing secret named", err)
	}
	quiet := pod.DeepCopy()
	quiet.Spec.EnableServiceLinks = new(false)
	if env, _ := ContainerEnv(st, quiet, c); slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "REDIS") }) {
		t.Error("Service variables without enableServiceLinks")
	}
}
