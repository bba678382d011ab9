package main

import (
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
	"podgate/nat"
)

// backendRecord is one endpoint of one Service port, with the conversations
// that it holds through that Service.
type backendRecord struct {
	Namespace   string `json:"namespace"`
	Service     string `json:"service"`
	Port        string `json:"port"`    // "http", or the number where it has no name
	Address     string `json:"address"` // address:port
	Pod         string `json:"pod,omitempty"`
	Ready       bool   `json:"ready"`
	Serving     bool   `json:"serving"`
	Terminating bool   `json:"terminating"`
	Local       bool   `json:"local"` // on this node
	Flows       int    `json:"flows"`
}

// state is the endpoint's condition in a word.
func (b *backendRecord) state() string {
	switch {
	case b.Ready:
		return "ready"
	case b.Terminating && b.Serving:
		return "terminating"
	}
	return "not-ready"
}

// backends lists the endpoints of Services as the data path has them.
func (g *gateway) backends(namespace, name string) (out []backendRecord) {
	g.mu.Lock()
	services := g.compiled.services
	g.mu.Unlock()
	if services == nil {
		return nil
	}
	type held struct{ service, backend string }
	flows := map[held]int{}
	for _, f := range g.plane.Flows() {
		if f.Service != "" {
			at, _, _ := strings.Cut(f.Backend, " ")
			flows[held{f.Service, at}]++
		}
	}
	for svc := range services.Services() {
		if svc.IsPod || namespace != "" && svc.Name.Namespace != namespace || name != "" && svc.Name.Name != name {
			continue
		}
		for _, sp := range svc.Ports {
			port := portName(sp)
			for i := range sp.Endpoints {
				e := &sp.Endpoints[i]
				b := backendRecord{
					Namespace: svc.Name.Namespace, Service: svc.Name.Name, Port: port, Address: e.AddrPort().String(),
					Ready: e.Ready, Serving: e.Serving, Terminating: e.Terminating, Local: e.Local,
					Flows: flows[held{fmt.Sprintf("%s:%s", svc.Name, port), e.AddrPort().String()}],
				}
				if e.Pod != (kube.Name{}) {
					b.Pod = e.Pod.String()
				}
				out = append(out, b)
			}
		}
	}
	return out
}

func portName(sp *nat.ServicePort) string {
	if sp.Name == "" {
		return fmt.Sprint(sp.Port)
	}
	return sp.Name
}

func (p *getPrinter) backendTable(items []json.RawMessage) error {
	all, err := decodeAll[backendRecord](items)
	if err != nil {
		return err
	}
	t := newTable(p.w, "SERVICE", "PORT", "ADDRESS", "POD", "STATE", "FLOWS")
	for i := range all {
		b := &all[i]
		service := b.Service
		if p.namespace {
			service = b.Namespace + "/" + service
		}
		t.row(service, b.Port, b.Address, b.Pod, b.state(), fmt.Sprint(b.Flows))
	}
	return t.flush()
}

// backendText is a Service's BACKENDS column: "10.244.0.5:8080 ready 3 flows".
func backendText(svc *corev1.Service, all []backendRecord) string {
	var parts []string
	for i := range all {
		if b := &all[i]; b.Namespace == svc.Namespace && b.Service == svc.Name {
			parts = append(parts, fmt.Sprintf("%s %s %d flows", b.Address, b.state(), b.Flows))
		}
	}
	return strings.Join(parts, ", ")
}
