package main

import (
	"fmt"
	"os"
	"time"

	"podgate/dns"
	"podgate/kube"
)

// corefileEvery is how often the file is looked at.
const corefileEvery = time.Second

// corefileSource is the Corefile in force: the file of dns.corefile, else key
// Corefile of the ConfigMap kube-system/coredns, else none.
type corefileSource struct {
	text     string
	parsed   *dns.Corefile // nil: none
	problems []kube.Problem
}

var corefileMap = kube.Name{Namespace: "kube-system", Name: "coredns"}

// changed says whether the file differs from what was read last.
func (s *corefileSource) changed(file string) bool {
	if file == "" {
		return false
	}
	data, err := os.ReadFile(file)
	return err == nil && string(data) != s.text
}

// read returns the Corefile, nil if there is none, and what is wrong with it.
// The same text gives the same Corefile. A file that cannot be read leaves the
// one before in force.
func (s *corefileSource) read(file, domain string, st *kube.State) (*dns.Corefile, []kube.Problem) {
	text, at := "", kube.Problem{Severity: kube.Warning}
	switch cm := st.ConfigMaps[corefileMap]; {
	case file != "":
		at.File = file
		data, err := os.ReadFile(file)
		if err != nil {
			at.Err = fmt.Sprintf("dns.corefile: %v", err)
			return s.parsed, []kube.Problem{at}
		}
		text = string(data)
	case cm != nil:
		at.Kind, at.Object, at.Field = "ConfigMap", corefileMap, "data.Corefile"
		text = cm.Data["Corefile"]
	}
	if text == s.text && s.problems == nil == (s.parsed == nil) {
		return s.parsed, s.problems
	}
	*s = corefileSource{text: text}
	if text == "" {
		return nil, nil
	}
	var found []dns.CorefileProblem
	s.parsed, found = dns.ParseCorefile(text, domain)
	s.problems = []kube.Problem{}
	for _, p := range found {
		q := at
		q.Err = p.String()
		s.problems = append(s.problems, q)
	}
	return s.parsed, s.problems
}
