package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"
)

// table aligns columns as kubectl does.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, heads ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)}
	t.row(heads...)
	return t
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "<none>"
		}
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t *table) flush() error { return t.w.Flush() }

// withoutFirstLine passes on what is written after the first end of line.
type withoutFirstLine struct {
	w    io.Writer
	past bool
}

func (o *withoutFirstLine) Write(b []byte) (int, error) {
	rest := b
	if !o.past {
		_, after, found := bytes.Cut(b, []byte{'\n'})
		if !found {
			return len(b), nil
		}
		o.past, rest = true, after
	}
	if _, err := o.w.Write(rest); err != nil {
		return 0, err
	}
	return len(b), nil
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "    ")
	return e.Encode(v)
}

func printYAML(w io.Writer, v any) error {
	b, err := yaml.Marshal(v)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// enum is a flag value that takes only the words it knows.
type enum struct {
	value string
	words []string
}

func (e *enum) String() string { return e.value }
func (e *enum) Type() string   { return strings.Join(e.words, "|") }
func (e *enum) Set(v string) error {
	w, err := oneOf(v, e.words...)
	if err == nil {
		e.value = w
	}
	return err
}

// outputFlag adds -o with the first of words as its default.
func outputFlag(fs *pflag.FlagSet, words ...string) *string {
	e := &enum{words[0], words}
	fs.VarP(e, "output", "o", "output format")
	return &e.value
}

// age prints how long ago t was, as kubectl does.
func age(t, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t))
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
