package stacktest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// imports are what the files of a package import, tests apart.
type imports map[string][]string // import path to the files that name it

// module reads every package of the module: "" is the root.
func module(t *testing.T) map[string]imports {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			t.Fatal("no go.mod above the test")
		}
		root = filepath.Dir(root)
	}
	packages := map[string]imports{}
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".")) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		for _, c := range f.Comments {
			if strings.HasPrefix(c.Text(), "build deps") || len(c.List) > 0 && c.List[0].Text == "//go:build deps" {
				return nil
			}
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(rel))
		if packages[pkg] == nil {
			packages[pkg] = imports{}
		}
		for _, spec := range f.Imports {
			p := strings.Trim(spec.Path.Value, `"`)
			packages[pkg][p] = append(packages[pkg][p], path.Base(filepath.ToSlash(rel)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

// under says whether pkg is dir or below it.
func under(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

// The dependency direction of docs/architecture.md: what a room may know.
func TestImports(t *testing.T) {
	const ours = "podgate/"
	// May a package import one of ours? Rooms that are not listed may import
	// what they like.
	allowed := map[string][]string{
		"stack/packet": {},
		"stack/flow":   {"stack/packet"},
		"stack/link":   {"stack/packet", "stack/link"},
		"nat":          {"stack/packet", "stack/flow", "kube"},
		"policy":       {"stack/packet", "stack/flow", "kube"},
		"dns":          {"kube"},
		"ingress":      {"kube"},
		"kube":         {"kube"},
		"cni":          {"control", "stack/link"},
		"stack":        {"stack/packet", "stack/flow", "stack/link", "nat", "policy", "kube"},
	}
	// Who may import what is not ours.
	foreign := []struct {
		path string
		by   []string
	}{
		{"gvisor.dev", []string{"stack/local", "stack/stacktest"}},
		{"k8s.io/client-go", []string{"kube/watch"}},
		{"github.com/songgao/water", []string{"stack/link"}},
		{"github.com/spf13/cobra", []string{"cmd"}},
		{"github.com/spf13/viper", []string{"cmd"}},
	}
	packages := module(t)
	for pkg := range allowed {
		if packages[pkg] == nil {
			t.Errorf("there is no package %s any more", pkg)
		}
	}
	for pkg, imports := range packages {
		for imported, files := range imports {
			for _, f := range foreign {
				if under(imported, f.path) && !slices.ContainsFunc(f.by, func(dir string) bool { return under(pkg, dir) }) {
					t.Errorf("%s imports %s (%v): only %v may", pkg, imported, files, f.by)
				}
			}
			if under(imported, "k8s.io") {
				checkKubernetes(t, pkg, imported, files)
			}
			room, ok := allowed[pkg]
			if own := strings.TrimPrefix(imported, ours); ok && own != imported && own != pkg && !slices.Contains(room, own) {
				t.Errorf("%s imports %s (%v): it may import %v of ours", pkg, own, files, room)
			}
		}
	}
}

// Kubernetes API types stop in kube and in the compile files of those who
// compile from it; the data plane has never heard of them.
func checkKubernetes(t *testing.T, pkg, imported string, files []string) {
	t.Helper()
	switch {
	case under(pkg, "stack/stacktest"):
	case under(pkg, "stack"):
		t.Errorf("%s imports %s (%v): Kubernetes types stop at kube and the compilers", pkg, imported, files)
	case pkg == "nat", pkg == "policy", pkg == "dns", pkg == "ingress":
		for _, f := range files {
			if !strings.HasPrefix(f, "compile") {
				t.Errorf("%s/%s imports %s: only compile files may", pkg, f, imported)
			}
		}
	}
}
