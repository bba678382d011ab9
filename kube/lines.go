package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"

	yamlnode "go.yaml.in/yaml/v3"
)

// document is one YAML document of a file.
type document struct {
	data []byte
	line int // of its first byte, from 1

	once sync.Once
	root *yamlnode.Node // parsed when a line is asked for; nil if it cannot be
}

func (d *document) node() *yamlnode.Node {
	d.once.Do(func() {
		var root yamlnode.Node
		if yamlnode.Unmarshal(d.data, &root) == nil && len(root.Content) > 0 {
			d.root = root.Content[0]
		}
	})
	return d.root
}

// firstLine is that of the first thing said.
func (d *document) firstLine() int {
	n := d.line
	for line := range bytes.Lines(d.data) {
		if t := bytes.TrimSpace(line); len(t) > 0 && t[0] != '#' {
			return n
		}
		n++
	}
	return d.line
}

// lineIndex knows the lines of an object's fields: of the object at a path in
// its document. The zero value knows none.
type lineIndex struct {
	doc *document
	at  string
}

// find is the line of a field, or of the nearest thing around it; 0 if unknown.
// It parses the document: only for when there is something to say.
func (x lineIndex) find(fieldPath string) int {
	node := x.node()
	if node == nil {
		return 0
	}
	line := node.Line
	for _, step := range splitPath(fieldPath) {
		next, at := child(node, step)
		if next == nil {
			break
		}
		node, line = next, at
	}
	return x.doc.line + line - 1
}

func (x lineIndex) node() *yamlnode.Node {
	if x.doc == nil {
		return nil
	}
	node := x.doc.node()
	for _, step := range splitPath(x.at) {
		if node == nil {
			return nil
		}
		node, _ = child(node, step)
	}
	return node
}

// splitPath cuts spec.ports[0].port into spec, ports, 0, port.
func splitPath(path string) []string {
	var steps []string
	for path != "" {
		if rest, ok := strings.CutPrefix(path, "["); ok {
			step, after, _ := strings.Cut(rest, "]")
			steps = append(steps, step)
			path = strings.TrimPrefix(after, ".")
			continue
		}
		i := strings.IndexAny(path, ".[")
		if i < 0 {
			return append(steps, path)
		}
		if i > 0 {
			steps = append(steps, path[:i])
		}
		path = path[i:]
		path = strings.TrimPrefix(path, ".")
	}
	return steps
}

func child(n *yamlnode.Node, step string) (*yamlnode.Node, int) {
	if n.Kind == yamlnode.AliasNode {
		n = n.Alias
	}
	switch n.Kind {
	case yamlnode.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i+1], n.Content[i].Line
			}
		}
	case yamlnode.SequenceNode:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i], n.Content[i].Line
		}
	}
	return nil, 0
}

type duplicate struct {
	key, path string
	line      int
}

// duplicates are the keys that a mapping has twice: YAML forbids them, and which
// one wins would be chance.
func (x lineIndex) duplicates() []duplicate {
	var out []duplicate
	var walk func(n *yamlnode.Node, path string)
	walk = func(n *yamlnode.Node, path string) {
		switch n.Kind {
		case yamlnode.MappingNode:
			seen := map[string]bool{}
			for i := 0; i+1 < len(n.Content); i += 2 {
				k := n.Content[i]
				at := strings.TrimPrefix(path+"."+k.Value, ".")
				if seen[k.Value] && k.Tag != "!!merge" {
					out = append(out, duplicate{k.Value, at, x.doc.line + k.Line - 1})
				}
				seen[k.Value] = true
				walk(n.Content[i+1], at)
			}
		case yamlnode.SequenceNode:
			for i, c := range n.Content {
				walk(c, fmt.Sprintf("%s[%d]", path, i))
			}
		}
	}
	if n := x.node(); n != nil {
		walk(n, "")
	}
	return out
}

// jsonPathAt is the path of the value at or before an offset.
func jsonPathAt(js []byte, offset int64) string {
	type level struct {
		array  bool
		index  int
		key    string
		isName bool // the next token is a member's name
	}
	var stack []level
	path := func() string {
		var b strings.Builder
		for _, l := range stack {
			switch {
			case l.array:
				fmt.Fprintf(&b, "[%d]", l.index)
			case l.key != "":
				if b.Len() > 0 {
					b.WriteByte('.')
				}
				b.WriteString(l.key)
			}
		}
		return b.String()
	}
	dec := json.NewDecoder(bytes.NewReader(js))
	dec.UseNumber()
	for {
		tok, err := dec.Token()
		if err == io.EOF || err != nil {
			return path()
		}
		top := len(stack) - 1
		if d, ok := tok.(json.Delim); ok && (d == ']' || d == '}') {
			stack = stack[:top]
			top--
			if dec.InputOffset() >= offset {
				return path()
			}
			if top >= 0 {
				stack[top].index++
				stack[top].isName = !stack[top].array
			}
			continue
		}
		if top >= 0 && stack[top].isName {
			stack[top].key, stack[top].isName = tok.(string), false
			continue
		}
		if dec.InputOffset() >= offset {
			return path()
		}
		if d, ok := tok.(json.Delim); ok {
			stack = append(stack, level{array: d == '[', isName: d == '{'})
			continue
		}
		if top >= 0 {
			stack[top].index++
			stack[top].isName = !stack[top].array
		}
	}
}

var yamlLine = regexp.MustCompile(`line (\d+)`)

func yamlErrorLine(err error) (int, bool) {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return 0, false
	}
	n, _ := strconv.Atoi(m[1])
	return n, true
}
