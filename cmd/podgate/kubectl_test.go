package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"podgate/stack/link/nstest"
)

const assortment = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: "1", b: "2"}
---
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: one}}
spec: {containers: [{name: main, image: podgate.dev/workload, args: [http, --port, "80"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec: {containers: [{name: c, image: x, command: [sh, -c, "echo boom; exit 3"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done}
spec: {restartPolicy: Never, containers: [{name: c, image: x, command: ["true"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: waits}
spec:
  initContainers: [{name: i, image: x, command: [sleep, "600"]}]
  containers: [{name: c, image: x}]
---
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  containers:
  - {name: c, image: x, command: [sh, -c, "trap 'sleep 0.3; exit 0' TERM; echo armed; while :; do sleep 0.05; done"]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: set}
spec:
  replicas: 1
  selector: {matchLabels: {app: set}}
  template:
    metadata: {labels: {app: set}}
    spec: {containers: [{name: c, image: x}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: quiet}
spec: {podSelector: {matchLabels: {app: none}}}
`

// Who knows kubectl finds its tables, names, selectors and silences.
func TestKubectlsHabitsWork(t *testing.T) {
	s := newShell(t)
	s.up("--set ingress.http= --set ingress.https= " + write(t, "app.yaml", assortment))
	line := func(cmd string, want string) func(*testing.T) {
		return func(t *testing.T) {
			s := s.in(t)
			re := regexp.MustCompile("(?m)" + want)
			var got string
			for deadline := time.Now().Add(runTime); !re.MatchString(got) && time.Now().Before(deadline); {
				r := s.run(cmd)
				got = r.out + r.errOut
			}
			if !re.MatchString(got) {
				t.Errorf("%s: no line like %s in\n%s", cmd, want, got)
			}
		}
	}
	t.Run("a pod that crashes", line("podgate get pods", `^crash +0/1 +CrashLoopBackOff +\d+ \(\d+s ago\) +\d+s$`))
	t.Run("a pod that is done", line("podgate get po done", `^done +0/1 +Completed +0 +\d+s$`))
	t.Run("a pod that initializes", line("podgate get pod/waits", `^waits +0/1 +Init:0/1 +0 +\d+s$`))
	t.Run("one address in the IP column", line("podgate get pods one -o wide", `^one +1/1 +Running +0 +\d+s +10\.244\.\d+\.\d+ +podgate +<none> +<none>$`))
	t.Run("workloads", line("podgate get sts", `^set +1/1 +\d+s$`))
	t.Run("configuration maps", line("podgate get cm", `^settings +2 +\d+s$`))
	t.Run("names have their group", line("podgate get netpol -o name", `\Anetworkpolicy\.networking\.k8s\.io/quiet\n\z`))
	t.Run("a name with its group", line("podgate get networkpolicy.networking.k8s.io/quiet -o name", `quiet$`))
	t.Run("labels", line("podgate get pods -l app=one -o name", `\Apod/one\n\z`))
	t.Run("several names", line("podgate get pods one done -o name", `\Apod/one\npod/done\n\z`))
	t.Run("no headers", line("podgate get pods -l app=one --no-headers", `\Aone `))
	t.Run("nothing there", line("podgate get svc", `\ANo resources found in default namespace\.\n\z`))
	t.Run("not found", line("podgate get svc nope", `Error from server \(NotFound\): services "nope" not found`))
	t.Run("completion of pods", line("podgate __complete exec o", `^one$`))
	t.Run("completion of names", line("podgate __complete get cm ''", `^settings$`))
	t.Run("completion of namespaces", line("podgate __complete get pods -n ''", `^kube-system$`))
	t.Run("completion of containers", line("podgate __complete logs one -c ''", `^main$`))
	t.Run("ping has no ports", line("podgate trace one icmp 10.96.0.10", `\Aicmp 10\.244\.\d+\.\d+ > 10\.96\.0\.10$`))

	t.Run("-t without a terminal runs without one", func(t *testing.T) {
		s := s.in(t)
		if r := s.runWith("podgate exec -it one -- cat", "hello"); r.code != 0 || r.out != "hello" || !strings.Contains(r.errOut, "no terminal") {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("-it with a terminal has one", func(t *testing.T) {
		nstest.Need(t, "script")
		s := s.in(t)
		r := s.run(`SHELL=/bin/sh script -qec "podgate exec -it one -- sh -c 'test -t 0 && test -t 1 && exit 5'" /dev/null </dev/null`)
		if r.code != 5 {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("50 MB pass through exec unharmed", func(t *testing.T) {
		s := s.in(t)
		if got := s.must("head -c 50000000 /dev/zero | podgate exec -i one -- cat | cksum"); got != s.must("head -c 50000000 /dev/zero | cksum") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("delete returns when the pod has ended", func(t *testing.T) {
		s := s.in(t)
		line("podgate logs slow", "armed")(t)
		f := write(t, "slow.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: slow}\nspec: {containers: [{name: c, image: x}]}\n")
		if got := s.must("podgate delete -f " + f); got != "pod \"slow\" deleted\n" {
			t.Errorf("got %q", got)
		}
		if r := s.run("podgate get pod slow"); r.code != 1 {
			t.Errorf("still there:\n%s", r.out)
		}
	})
}

// Wrong command lines get one line, and 2 where the usage is at fault.
func TestCommandLineMistakesAreOneLine(t *testing.T) {
	s := newShell(t)
	for _, c := range []struct {
		cmd, want string
		code      int
	}{
		{"podgate apply -f nope.yaml", "podgate: nope.yaml: no such file or directory", 1},
		{"podgate apply", "podgate: apply: name manifests with -f: files, folders, or -", 2},
		{"podgate get", "podgate: get: name a kind: pods, ", 2},
		{"podgate get pods -l ==", "podgate: get: -l ==: ", 2},
		{"podgate config nope", "podgate: nope: no such file or directory", 1},
		{"podgate apply -f " + t.TempDir(), "podgate: no manifests (*.yaml, *.yml, *.json) in ", 1},
		{"podgate down", `podgate: no instance "default" is running`, 1},
	} {
		r := s.run(c.cmd)
		if r.code != c.code || !strings.HasPrefix(r.errOut, c.want) || strings.Count(r.errOut, "\n") != 1 || r.out != "" {
			t.Errorf("%s: exit code %d, want %d and one line %q; got %q", c.cmd, r.code, c.code, c.want, r.errOut)
		}
	}
}

// Every command that a user types has an example in its help.
func TestEveryHelpTextHasAnExample(t *testing.T) {
	for _, c := range newRootCmd().Commands() {
		if c.Name() != "help" && c.Name() != "completion" && !strings.Contains(c.Example, "podgate "+c.Name()) && !strings.Contains(c.Example, " "+c.Name()+" ") {
			t.Errorf("podgate %s --help has no example", c.Name())
		}
	}
}

// A folder that is watched may be edited, broken, mended and emptied.
func TestWatchedFoldersFollowTheirFiles(t *testing.T) {
	s := newShell(t)
	dir := t.TempDir()
	pod := func(name string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec: {containers: [{name: c, image: x}]}\n"
	}
	put := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	await := func(want string) {
		t.Helper()
		got := ""
		for deadline := time.Now().Add(runTime); got != want && time.Now().Before(deadline); {
			got = strings.Join(strings.Fields(s.run("podgate get pods -o name").out), " ")
		}
		if got != want {
			t.Fatalf("got pods %q, want %q", got, want)
		}
	}
	put(pod("a"))
	s.up("--set ingress.http= --set ingress.https= " + dir)
	await("pod/a")
	put(pod("a") + "---\n" + pod("b"))
	await("pod/a pod/b")
	put("x: : y\n")
	if err := os.WriteFile(filepath.Join(dir, "more.yaml"), []byte(pod("c")), 0o644); err != nil {
		t.Fatal(err)
	}
	await("pod/a pod/b pod/c") // of the broken file, the last good objects stay
	put(pod("b"))
	await("pod/b pod/c")
	if err := os.Remove(filepath.Join(dir, "more.yaml")); err != nil {
		t.Fatal(err)
	}
	await("pod/b")
}
