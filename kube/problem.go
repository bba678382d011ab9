package kube

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Severity says what a Problem does to its object.
type Severity uint8

const (
	Error   Severity = iota // the object is not applied, or only its last good version is
	Warning                 // the object is applied, but will hardly do what its author meant
	Info                    // worth knowing
)

func (s Severity) String() string {
	return [...]string{"error", "warning", "info"}[s]
}

// Problem is what is wrong with one object, in the words of the API server.
type Problem struct {
	Severity Severity
	File     string // where the object was read, may be empty
	Line     int    // in File, from 1; 0 if unknown
	Kind     string // "Service"; empty when the file could not be read as objects
	Object   Name
	Field    string // "spec.ports[0].port", may be empty
	Err      string
}

// String is the whole problem in one line:
//
//	shop.yaml:12: Service shop/web: spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	switch {
	case p.Kind != "" && p.Object.Name != "":
		fmt.Fprintf(&b, "%s %s: ", p.Kind, p.Object)
	case p.Kind != "":
		fmt.Fprintf(&b, "%s: ", p.Kind)
	}
	if p.Severity != Error {
		fmt.Fprintf(&b, "%s: ", p.Severity)
	}
	if p.Field != "" {
		fmt.Fprintf(&b, "%s: ", p.Field)
	}
	b.WriteString(strings.ReplaceAll(p.Err, "\n", " "))
	return b.String()
}

// problems turns what validation found in an object into Problems.
func problems(o Object, errs field.ErrorList) []Problem {
	var out []Problem
	for _, e := range errs {
		out = append(out, o.problem(e.Field, e.ErrorBody()))
	}
	return out
}

func compareProblems(a, b Problem) int {
	return cmp.Or(
		cmp.Compare(a.Severity, b.Severity),
		cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.Object.Namespace, b.Object.Namespace),
		cmp.Compare(a.Object.Name, b.Object.Name),
		cmp.Compare(a.File, b.File),
		cmp.Compare(a.Line, b.Line),
		cmp.Compare(a.Field, b.Field),
		cmp.Compare(a.Err, b.Err),
	)
}

func sortProblems(ps []Problem) []Problem {
	slices.SortFunc(ps, compareProblems)
	return slices.Compact(ps)
}
