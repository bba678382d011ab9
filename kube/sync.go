package kube

import (
	"maps"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Sync makes the objects that are there because of files equal to objs, which
// was loaded from them with problems: new ones are created, changed ones
// configured, those that are gone deleted. What came by Apply stays, and so does
// what Apply or Delete did to objects whose files did not change since. Of a file
// that has an Error among its problems nothing is deleted: the last good version
// of its objects stays. So does what came from standard input, which cannot be
// read again. The problems are those of State until the next Sync.
func (s *Store) Sync(objs []Object, problems []Problem) []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	problems = slices.Clone(problems)
	for _, p := range s.loading {
		if p.File == stdinFile && !slices.Contains(problems, p) {
			problems = append(problems, p)
		}
	}
	if !slices.Equal(s.loading, problems) {
		s.loading, s.next.problems = problems, true
	}
	there := map[key]bool{}
	var changed []Object
	for _, o := range objs {
		k := o.key()
		there[k] = true
		if last := s.synced[k]; last == nil || len(s.problems[k]) > 0 || !sameWant(last, wanted(o.API)) {
			changed = append(changed, o)
		}
	}
	changes := s.applyAll(changed, true)

	broken := map[string]bool{stdinFile: true}
	for _, p := range problems {
		broken[p.File] = broken[p.File] || p.Severity == Error
	}
	var gone []key
	for k, r := range s.records {
		if r.files && !there[k] && !isBroken(broken, r.source.File) {
			gone = append(gone, k)
		}
	}
	for k := range s.synced {
		if r := s.records[k]; !there[k] && (r == nil || !isBroken(broken, r.source.File)) {
			delete(s.synced, k)
		}
	}
	for k := range s.problems { // rejected, and not even wanted any more
		if s.records[k] == nil && !there[k] {
			s.accept(k)
		}
	}
	slices.SortFunc(gone, compareKeys)
	for _, k := range slices.Backward(gone) {
		changes = append(changes, s.unsync(k))
	}
	s.settle()
	for i, o := range changed {
		if changes[i].Action == Rejected && len(gone) > 0 { // perhaps for what is free by now
			changes[i] = s.apply(o, true)
		}
		if changes[i].Action != Rejected {
			s.synced[o.key()] = s.records[o.key()].want
		}
	}
	s.settle()
	s.publish()
	return changes
}

// isBroken says whether a file, or a folder that it is in, could not be read.
func isBroken(broken map[string]bool, file string) bool {
	for {
		if broken[file] {
			return true
		}
		dir := filepath.Dir(file)
		if dir == file || dir == "." {
			return false
		}
		file = dir
	}
}

// unsync deletes what is no longer in files. A namespace that others are in
// loses what the files said of it, no more.
func (s *Store) unsync(k key) Change {
	r := s.records[k]
	inUse := k.kind == "Namespace" && slices.ContainsFunc(slices.Collect(maps.Keys(s.records)), func(o key) bool {
		return o.name.Namespace == k.name.Name
	})
	switch {
	case r.builtin:
		s.apply(Object{API: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: k.name.Name}}}, false)
		s.records[k].files = false
		return Change{Kind: k.kind, Name: k.name, Action: Configured}
	case inUse:
		s.forget(k)
		return Change{Kind: k.kind, Name: k.name, Action: Deleted}
	}
	return s.delete(r.source)
}
