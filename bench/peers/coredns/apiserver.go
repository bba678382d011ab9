package main

import (
	"encoding/json"
	"net/http"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"podgate/kube"
)

// apiServer is as much of a Kubernetes API server as CoreDNS's kubernetes plugin
// asks for: lists and watches of four resources, in JSON. A watch that wants
// initial events gets them; later ones are what change sends.
type apiServer struct {
	mu       sync.Mutex
	objects  map[string][]runtime.Object // by resource, in apiVersion and kind complete
	watchers map[string]map[chan event]struct{}
}

// event is one line of a watch.
type event struct {
	Type   string         `json:"type"`
	Object runtime.Object `json:"object"`
}

var apiResources = map[string]metav1.TypeMeta{ // by path
	"/api/v1/namespaces":                       {APIVersion: "v1", Kind: "Namespace"},
	"/api/v1/pods":                             {APIVersion: "v1", Kind: "Pod"},
	"/api/v1/services":                         {APIVersion: "v1", Kind: "Service"},
	"/apis/discovery.k8s.io/v1/endpointslices": {APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
}

func newAPIServer(st *kube.State) *apiServer {
	s := &apiServer{objects: map[string][]runtime.Object{}, watchers: map[string]map[chan event]struct{}{}}
	add := func(path string, o runtime.Object) { s.objects[path] = append(s.objects[path], typed(path, o)) }
	for name, ns := range st.Namespaces {
		ns = ns.DeepCopy()
		ns.Name = name
		add("/api/v1/namespaces", ns)
	}
	for _, o := range st.Pods {
		add("/api/v1/pods", o)
	}
	for _, o := range st.Services {
		add("/api/v1/services", o)
	}
	for _, o := range st.EndpointSlices.All() {
		add("/apis/discovery.k8s.io/v1/endpointslices", o)
	}
	return s
}

// typed is a copy of o that says what it is, at the one resource version.
func typed(path string, o runtime.Object) runtime.Object {
	o = o.DeepCopyObject()
	meta := apiResources[path]
	switch o := o.(type) {
	case *corev1.Namespace:
		o.TypeMeta, o.ResourceVersion = meta, "1"
	case *corev1.Pod:
		o.TypeMeta, o.ResourceVersion = meta, "1"
	case *corev1.Service:
		o.TypeMeta, o.ResourceVersion = meta, "1"
	case *discoveryv1.EndpointSlice:
		o.TypeMeta, o.ResourceVersion = meta, "1"
	}
	return o
}

// change sends one changed object to those who watch its resource.
func (s *apiServer) change(path string, o runtime.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers[path] {
		w <- event{"MODIFIED", typed(path, o)}
	}
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	meta, ok := apiResources[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Query().Get("watch") == "" {
		s.mu.Lock()
		items := s.objects[r.URL.Path]
		s.mu.Unlock()
		if items == nil {
			items = []runtime.Object{}
		}
		json.NewEncoder(w).Encode(map[string]any{
			"apiVersion": meta.APIVersion, "kind": meta.Kind + "List",
			"metadata": map[string]string{"resourceVersion": "1"}, "items": items,
		})
		return
	}
	s.watch(w, r, meta)
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, meta metav1.TypeMeta) {
	events := make(chan event, 64)
	s.mu.Lock()
	if s.watchers[r.URL.Path] == nil {
		s.watchers[r.URL.Path] = map[chan event]struct{}{}
	}
	s.watchers[r.URL.Path][events] = struct{}{}
	items := s.objects[r.URL.Path]
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers[r.URL.Path], events)
		s.mu.Unlock()
	}()
	enc := json.NewEncoder(w)
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, o := range items {
			enc.Encode(event{"ADDED", o})
		}
		enc.Encode(map[string]any{"type": "BOOKMARK", "object": map[string]any{
			"apiVersion": meta.APIVersion, "kind": meta.Kind,
			"metadata": map[string]any{"resourceVersion": "1", "annotations": map[string]string{metav1.InitialEventsAnnotationKey: "true"}},
		}})
	}
	w.(http.Flusher).Flush()
	for {
		select {
		case e := <-events:
			enc.Encode(e)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}
