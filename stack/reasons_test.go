package stack

import (
	"os"
	"regexp"
	"testing"
)

// docs/reasons.md explains every Reason, and nothing else.
func TestReasonsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\| (\\w+) \\|").FindAllStringSubmatch(string(page), -1) {
		if _, twice := documented[m[1]]; twice {
			t.Errorf("docs/reasons.md lists %s twice", m[1])
		}
		documented[m[1]] = m[2]
	}
	for _, r := range Reasons() {
		name := r.String()
		if got, want := documented[name], r.class().String(); got != want {
			t.Errorf("docs/reasons.md says that %s is %q, want %q", name, got, want)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/reasons.md lists %s, which no code gives", name)
	}
}

func TestReasonNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Reasons() {
		if seen[r.String()] || r.String() == "" {
			t.Errorf("reason %d: name %q is empty or taken", r, r)
		}
		seen[r.String()] = true
	}
}
