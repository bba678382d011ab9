package main

import (
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

func TestCorefileFromConfigMapOrFile(t *testing.T) {
	with := func(text string) *kube.State {
		return &kube.State{ConfigMaps: map[kube.Name]*corev1.ConfigMap{corefileMap: {Data: map[string]string{"Corefile": text}}}}
	}
	var s corefileSource
	read := func(file string, st *kube.State, want int) any {
		t.Helper()
		c, problems := s.read(file, "cluster.local", st)
		if len(problems) != want {
			t.Errorf("got problems %v, want %d", problems, want)
		}
		return c
	}
	none := read("", &kube.State{}, 0)
	first := read("", with(".:53 {\n errors\n}\n"), 0)
	if again := read("", with(".:53 {\n errors\n}\n"), 0); again != first || first == none {
		t.Error("the same text gives another Corefile")
	}
	if second := read("", with(".:53 {\n whoami\n}\n"), 1); second == first {
		t.Error("a changed ConfigMap is not read")
	}
	if gone := read("", &kube.State{}, 0); gone != none {
		t.Error("a ConfigMap that is gone stays in force")
	}

	file := filepath.Join(t.TempDir(), "Corefile")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read(file, &kube.State{}, 1) // there is none
	write(".:53 {\n errors\n}\n")
	if !s.changed(file) {
		t.Error("a new file is not seen")
	}
	first = read(file, &kube.State{}, 0)
	if s.changed(file) {
		t.Error("the file is said to have changed")
	}
	write(".:53 {\n whoami\n}\n")
	if !s.changed(file) || read(file, &kube.State{}, 1) == first {
		t.Error("a changed file is not read")
	}
}
