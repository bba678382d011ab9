package kube

// Theory of operation
//
// A manifest file is cut into YAML documents, each document is turned into JSON
// by the same library that kubectl and the API server use, and the JSON is
// decoded strictly into Kubernetes' own types. Nothing is defaulted or validated
// here, that is the store's work: Load answers "what does it say", Apply answers
// "can it be". The YAML is parsed a second time, into nodes, only to know the
// line of a field when there is something to say about it.

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Manifests is what some files hold, in the order in which it should be applied.
type Manifests struct {
	Objects []Object
	Files   []string // those read, as named by the caller or below a folder of the caller's
}

// ConfigFile is the name of podgate's own configuration beside the manifests: it
// is not read as one.
const ConfigFile = "podgate.yaml"

// StdinName stands for standard input among paths, as it does for kubectl.
const StdinName = "-"

// stdinFile is what Problems call it.
const stdinFile = "stdin"

// Load reads manifests: files, folders with everything below them (.yaml, .yml
// and .json, in lexical order, hidden ones and [ConfigFile] left out), and "-"
// for stdin. Files hold any number of documents and Lists.
//
// What cannot be read is a Problem and left out; the rest is returned. Kinds that
// podgate does not know are left out with one Warning a kind. Objects without a
// namespace are put into "default".
func Load(paths []string, stdin io.Reader) (*Manifests, []Problem) {
	l := loader{ignored: map[string]*ignored{}}
	for _, path := range paths {
		l.path(path, stdin)
	}
	return l.finish()
}

// LoadBytes reads the manifests of one file whose content is at hand; name is
// what Problems call it.
func LoadBytes(name string, data []byte) (*Manifests, []Problem) {
	return LoadBytesIn("", name, data)
}

// LoadBytesIn is LoadBytes for one namespace, as kubectl's -n means it: objects
// that name none are put into it, and naming another is a Problem. No namespace
// at all is LoadBytes.
func LoadBytesIn(namespace, name string, data []byte) (*Manifests, []Problem) {
	l := loader{namespace: namespace, ignored: map[string]*ignored{}}
	l.file(name, data)
	return l.finish()
}

type loader struct {
	namespace string // the only one that is allowed, if not empty
	files     []string
	objects   []Object
	problems  []Problem
	ignored   map[string]*ignored // by apiVersion and kind
}

type ignored struct {
	first Problem
	count int
}

func (l *loader) path(path string, stdin io.Reader) {
	if path == StdinName {
		data, err := io.ReadAll(stdin)
		if err != nil {
			l.fail(stdinFile, err)
			return
		}
		l.file(stdinFile, data)
		return
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		l.fail(path, err)
	case !info.IsDir():
		l.read(path)
	default:
		before := len(l.files)
		l.folder(path)
		if len(l.files) == before {
			l.problems = append(l.problems, Problem{Severity: Warning, File: path, Err: "no manifests in this folder (.yaml, .yml or .json)"})
		}
	}
}

func (l *loader) folder(root string) {
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			l.fail(path, err)
			return nil
		}
		if path == root {
			return nil
		}
		if e.IsDir() {
			if strings.HasPrefix(e.Name(), ".") {
				return fs.SkipDir
			}
			return nil
		}
		if isManifest(e.Name()) {
			l.read(path)
		}
		return nil
	})
}

// isManifest says by its name whether a file found in a folder is read.
func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") || name == ConfigFile {
		return false
	}
	return slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name))
}

func (l *loader) read(path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		l.fail(path, err)
		return
	}
	l.file(path, data)
}

func (l *loader) fail(path string, err error) {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err // the path is named already
	}
	l.problems = append(l.problems, Problem{File: path, Err: err.Error()})
}

func (l *loader) file(name string, data []byte) {
	l.files = append(l.files, name)
	for _, doc := range splitDocuments(data) {
		l.document(name, doc)
	}
}

// finish orders the objects by kind, keeps the last of those that are there
// twice, and adds what was ignored to the Problems.
func (l *loader) finish() (*Manifests, []Problem) {
	last := map[key]int{}
	for i, o := range l.objects {
		k := o.key()
		if j, ok := last[k]; ok {
			p := o.problem("", fmt.Sprintf("defined twice, also at %s:%d: the last one is used", l.objects[j].File, l.objects[j].Line))
			p.Severity = Warning
			l.problems = append(l.problems, p)
		}
		last[k] = i
	}
	m := &Manifests{Files: l.files}
	for i, o := range l.objects {
		if last[o.key()] == i {
			m.Objects = append(m.Objects, o)
		}
	}
	rank := func(o Object) int { return slices.Index(kinds, kindOf(o.API)) }
	slices.SortStableFunc(m.Objects, func(a, b Object) int { return cmp.Compare(rank(a), rank(b)) })

	for _, ig := range l.ignored {
		p := ig.first
		if ig.count > 1 {
			p.Err += fmt.Sprintf(" (%d objects)", ig.count)
		}
		l.problems = append(l.problems, p)
	}
	return m, sortProblems(l.problems)
}

// splitDocuments cuts at lines that begin with the document marker "---".
// Concatenated JSON values are documents too, as they are for kubectl.
func splitDocuments(data []byte) []*document {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	var docs []*document
	start, startLine, line := 0, 1, 1
	for pos := 0; pos < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		if l := data[pos:end]; bytes.HasPrefix(l, []byte("---")) && (len(l) == 3 || strings.IndexByte(" \t\r\n", l[3]) >= 0) {
			docs = append(docs, &document{data: data[start:pos], line: startLine})
			start, startLine = pos+3, line
		}
		pos = end
	}
	docs = append(docs, &document{data: data[start:], line: startLine})

	var out []*document
	for _, d := range docs {
		out = append(out, splitJSON(d)...)
	}
	return out
}

func splitJSON(d *document) []*document {
	if !bytes.HasPrefix(bytes.TrimSpace(d.data), []byte("{")) {
		return []*document{d}
	}
	var out []*document
	dec := json.NewDecoder(bytes.NewReader(d.data))
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err == io.EOF {
			return out
		} else if err != nil {
			return []*document{d} // YAML's flow style, or broken: let the YAML parser say so
		}
		begin := int(dec.InputOffset()) - len(raw)
		out = append(out, &document{data: raw, line: d.line + bytes.Count(d.data[:begin], []byte("\n"))})
	}
}

// typeMeta is what is read of a document first, to know what it is.
type typeMeta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name         string `json:"name"`
		Namespace    string `json:"namespace"`
		GenerateName string `json:"generateName"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

func (l *loader) document(file string, doc *document) {
	js, err := yaml.YAMLToJSONStrict(doc.data)
	twice := false
	if err != nil {
		if loose, looseErr := yaml.YAMLToJSON(doc.data); looseErr == nil {
			js, err, twice = loose, nil, true // only a key that is there twice
		}
	}
	if err != nil {
		p := Problem{File: file, Line: doc.firstLine(), Err: err.Error()}
		if at, ok := yamlErrorLine(err); ok {
			p.Line = doc.line + at - 1
		}
		l.problems = append(l.problems, p)
		return
	}
	if s := string(bytes.TrimSpace(js)); s == "null" {
		return
	}
	l.object(file, js, lineIndex{doc: doc}, typeMeta{}, twice)
}

// object decodes one object, or a List of them. Some key of its document is
// there twice if twice is set.
func (l *loader) object(file string, js []byte, lines lineIndex, inherited typeMeta, twice bool) {
	var tm typeMeta
	err := kjson.UnmarshalCaseSensitivePreserveInts(js, &tm)
	line := lines.doc.firstLine()
	if lines.at != "" {
		line = lines.find("")
	}
	tm.APIVersion = cmp.Or(tm.APIVersion, inherited.APIVersion)
	tm.Kind = cmp.Or(tm.Kind, inherited.Kind)
	problem := func(p Problem) {
		p.File, p.Line = file, cmp.Or(p.Line, line)
		p.Kind = tm.Kind
		p.Object = Name{tm.Metadata.Namespace, tm.Metadata.Name}
		l.problems = append(l.problems, p)
	}
	switch {
	case err != nil && tm.Kind == "":
		problem(Problem{Err: "not a Kubernetes object: " + err.Error()})
		return
	case tm.APIVersion == "" && tm.Kind == "":
		problem(Problem{Err: "not a Kubernetes object: apiVersion not set, kind not set"})
		return
	case tm.APIVersion == "":
		problem(Problem{Field: "apiVersion", Err: "Required value" + suggestVersion(tm.Kind)})
		return
	case tm.Kind == "":
		problem(Problem{Field: "kind", Err: "Required value"})
		return
	}
	if item, ok := listItem(tm); ok {
		for i, raw := range tm.Items {
			l.object(file, raw, lineIndex{lines.doc, fmt.Sprintf("items[%d]", i)}, item, twice)
		}
		return
	}
	v, known, what := lookupVersion(tm.APIVersion, tm.Kind)
	if !known {
		if what != "" {
			problem(Problem{Err: what})
			return
		}
		id := tm.APIVersion + " " + tm.Kind
		if ig := l.ignored[id]; ig != nil {
			ig.count++
			return
		}
		l.ignored[id] = &ignored{count: 1, first: Problem{
			Severity: Warning, File: file, Line: line, Kind: tm.Kind,
			Object: Name{tm.Metadata.Namespace, tm.Metadata.Name},
			Err:    fmt.Sprintf("ignored: podgate has nothing to do with kind %s of %s", tm.Kind, tm.APIVersion),
		}}
		return
	}
	home := cmp.Or(l.namespace, "default")
	if l.namespace != "" && !v.kind.clusterScoped && tm.Metadata.Namespace != "" && tm.Metadata.Namespace != l.namespace {
		problem(Problem{Field: "metadata.namespace", Err: fmt.Sprintf("the namespace from the provided object %q does not match the namespace %q", tm.Metadata.Namespace, l.namespace)})
		return
	}
	tm.Metadata.Namespace = cmp.Or(tm.Metadata.Namespace, home)
	if v.kind.clusterScoped {
		tm.Metadata.Namespace = ""
	}
	switch {
	case tm.Metadata.Name == "" && tm.Metadata.GenerateName != "":
		problem(Problem{Field: "metadata.generateName", Err: "cannot use generate name with apply"})
		return
	case tm.Metadata.Name == "" && err == nil:
		problem(Problem{Field: "metadata.name", Err: "Required value: name or generateName is required"})
		return
	}

	obj, ps := v.decode(js, lines)
	if twice {
		for _, d := range lines.duplicates() {
			ps = append(ps, Problem{Field: d.path, Line: d.line, Err: fmt.Sprintf("strict decoding error: key %q already set in map", d.key)})
		}
	}
	for _, p := range ps {
		problem(p)
	}
	if len(ps) > 0 {
		return
	}
	if !v.kind.clusterScoped && obj.GetNamespace() == "" {
		obj.SetNamespace(home)
	}
	l.objects = append(l.objects, Object{API: obj, File: file, Line: line, lines: lines})
}

// listItem says whether this is a List, and what its items are if they do not
// say it themselves, as those of a PodList.
func listItem(tm typeMeta) (item typeMeta, ok bool) {
	if tm.Kind == "List" && tm.APIVersion == "v1" {
		return typeMeta{}, true
	}
	of, isList := strings.CutSuffix(tm.Kind, "List")
	if _, known, _ := lookupVersion(tm.APIVersion, of); isList && known {
		return typeMeta{APIVersion: tm.APIVersion, Kind: of}, true
	}
	return typeMeta{}, false
}
