package watch

// Theory of operation
//
// Each kind has a reflector of client-go: it lists, then watches from where the
// list ended, and lists again whenever the watch cannot be continued (an expired
// version, 410, a restarted API server). What it reports goes to the feed, which
// gathers what comes within a few milliseconds and hands it to the store at once,
// so that a state is never one half of a change that comes as many events. A
// list is handed over as a whole: what is not in it is gone, whether the watch
// told or not.
//
// Nothing reaches the store before every kind was listed once: a state with pods
// and without their policies would let through what they forbid. From then on the
// store keeps what it has, whatever becomes of the API server.

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"podgate/kube"
)

const (
	gather         = 5 * time.Millisecond // how long changes are gathered after the first
	discoveryEvery = 30 * time.Second     // how often it is looked whether CRDs came or went
)

// Follow makes store follow the API server until ctx ends. It calls synced once,
// when the store has all that there was at the start.
func (c *Cluster) Follow(ctx context.Context, store *kube.Store, synced func()) {
	ctx = quiet(ctx)
	f := newFeed(store, synced)
	var wg sync.WaitGroup
	optional := map[schema.GroupVersion][]kind{}
	for _, k := range kinds {
		f.expect(k.name)
		if k.optional {
			optional[k.gv] = append(optional[k.gv], k)
			continue
		}
		wg.Go(func() { c.reflect(ctx, k, kube.Name{}, f) })
	}
	for gv, all := range optional {
		wg.Go(func() { c.followInstalled(ctx, gv, all, f) })
	}
	wg.Go(func() { c.followReferences(ctx, store, f) })
	f.run(ctx)
	wg.Wait()
}

// reflect lists and watches one kind, or one object of it, until ctx ends.
func (c *Cluster) reflect(ctx context.Context, k kind, only kube.Name, f *feed) {
	client := c.clients[k.gv]
	narrow := func(o *metav1.ListOptions) *metav1.ListOptions {
		if only.Name != "" {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", only.Name).String()
		}
		return o
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l, err := client.Get().Namespace(only.Namespace).Resource(k.resource).VersionedParams(narrow(&o), metav1.ParameterCodec).Do(ctx).Get()
			c.note(k, "list", err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			o.Watch = true
			w, err := client.Get().Namespace(only.Namespace).Resource(k.resource).VersionedParams(narrow(&o), metav1.ParameterCodec).Watch(ctx)
			c.note(k, "watch", err)
			return w, err
		},
	}
	cache.NewReflectorWithOptions(lw, k.new(), &sink{feed: f, kind: k, only: only}, cache.ReflectorOptions{
		Name:    k.name,
		Logger:  &discard,
		Backoff: &wait.Backoff{Duration: firstPause, Factor: 2, Jitter: 0.5, Steps: 20, Cap: lastPause},
	}).RunWithContext(ctx)
}

// followInstalled follows the kinds of a group version that the API server has.
func (c *Cluster) followInstalled(ctx context.Context, gv schema.GroupVersion, all []kind, f *feed) {
	running := map[string]context.CancelFunc{}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, stop := range running {
			stop()
		}
	}()
	for {
		there, err := c.served(ctx, gv)
		for _, k := range all {
			stop := running[k.name]
			switch {
			case err != nil && stop != nil: // it may be still there
			case there[k.resource] && stop == nil:
				ctx, cancel := context.WithCancel(ctx)
				running[k.name] = cancel
				wg.Go(func() { c.reflect(ctx, k, kube.Name{}, f) })
			case !there[k.resource]:
				if stop != nil {
					stop()
					delete(running, k.name)
				}
				f.replace(k.name, nil)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(discoveryEvery/2 + rand.N(discoveryEvery)):
		}
	}
}

// served are the resources of a group version; none if the API server does not
// have it. It is asked until it answers.
func (c *Cluster) served(ctx context.Context, gv schema.GroupVersion) (there map[string]bool, err error) {
	err = c.retry(ctx, func() error {
		var list metav1.APIResourceList
		err := c.clients[gv].Get().AbsPath("/apis", gv.Group, gv.Version).Do(ctx).Into(&list)
		c.note(kind{name: gv.Group}, "get", ignoreAbsent(err))
		if err != nil && ignoreAbsent(err) == nil {
			return nil
		}
		there = map[string]bool{}
		for _, r := range list.APIResources {
			there[r.Name] = true
		}
		return err
	})
	return there, err
}

func ignoreAbsent(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return nil
	}
	return err
}

// followReferences watches the Secrets and ConfigMaps that the state refers to,
// each by its name.
func (c *Cluster) followReferences(ctx context.Context, store *kube.Store, f *feed) {
	changed, cancel := store.Subscribe()
	defer cancel()
	running := map[kube.Ref]context.CancelFunc{}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, stop := range running {
			stop()
		}
	}()
	select {
	case <-ctx.Done():
		return
	case <-f.listed:
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		want := map[kube.Ref]kind{}
		secrets, configMaps := c.cfg.References(store.State())
		for _, n := range secrets {
			want[kube.Ref{Kind: secretKind.name, Name: n}] = secretKind
		}
		for _, n := range configMaps {
			want[kube.Ref{Kind: configMapKind.name, Name: n}] = configMapKind
		}
		for ref, stop := range running {
			if _, ok := want[ref]; !ok {
				stop()
				delete(running, ref)
				f.change(ref, nil)
			}
		}
		for _, k := range []kind{secretKind, configMapKind} { // those of a Memory
			for _, o := range store.Copies(k.name) {
				ref := kube.Ref{Kind: k.name, Name: kube.Name{Namespace: o.GetNamespace(), Name: o.GetName()}}
				if _, ok := want[ref]; !ok {
					f.change(ref, nil)
				}
			}
		}
		for ref, k := range want {
			if running[ref] == nil {
				ctx, cancel := context.WithCancel(ctx)
				running[ref] = cancel
				f.expect(ref.String())
				wg.Go(func() { c.reflect(ctx, k, ref.Name, f) })
			}
		}
		f.referencesKnown()
	}
}

// feed gathers what the reflectors report, and hands it to the store.
type feed struct {
	store  *kube.Store
	synced func()
	wake   chan struct{}
	listed chan struct{} // closed when the store has what was there at first

	mu       sync.Mutex
	whole    map[string][]kube.API
	changed  map[kube.Ref]kube.API // nil: gone
	expected map[string]bool       // kinds, and objects, that were not listed yet
	known    bool                  // it is known what is referred to
}

func newFeed(store *kube.Store, synced func()) *feed {
	return &feed{
		store: store, synced: synced, wake: make(chan struct{}, 1), listed: make(chan struct{}),
		whole: map[string][]kube.API{}, changed: map[kube.Ref]kube.API{}, expected: map[string]bool{},
	}
}

// run hands over until ctx ends.
func (f *feed) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(gather):
		}
		if b, ok := f.take(); ok {
			f.store.Follow(b)
			f.handedOver()
		}
	}
}

// take is what has come, unless a kind is missing yet.
func (f *feed) take() (b kube.Batch, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !closed(f.listed) && len(f.expected) > 0 {
		return b, false
	}
	b.Whole = f.whole
	for ref, o := range f.changed {
		if o == nil {
			b.Gone = append(b.Gone, ref)
		} else {
			b.Changed = append(b.Changed, o)
		}
	}
	f.whole, f.changed = map[string][]kube.API{}, map[kube.Ref]kube.API{}
	return b, true
}

// handedOver notes that the store has what was taken last.
func (f *feed) handedOver() {
	f.mu.Lock()
	if !closed(f.listed) {
		close(f.listed)
	}
	done := f.known && len(f.expected) == 0 && f.synced != nil
	synced := f.synced
	if done {
		f.synced = nil
	}
	f.mu.Unlock()
	if done {
		synced()
	}
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (f *feed) expect(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expected[what] = true
}

func (f *feed) referencesKnown() {
	f.mu.Lock()
	f.known = true
	f.mu.Unlock()
	f.poke()
}

func (f *feed) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// replace takes the whole list of a kind.
func (f *feed) replace(kind string, objs []kube.API) {
	f.mu.Lock()
	f.whole[kind] = objs
	maps.DeleteFunc(f.changed, func(r kube.Ref, _ kube.API) bool { return r.Kind == kind })
	delete(f.expected, kind)
	f.mu.Unlock()
	f.poke()
}

// change takes one object, or nil if it is gone.
func (f *feed) change(ref kube.Ref, o kube.API) {
	f.mu.Lock()
	f.changed[ref] = o
	delete(f.expected, ref.String())
	f.mu.Unlock()
	f.poke()
}

// sink is where a reflector puts what it finds.
type sink struct {
	feed *feed
	kind kind
	only kube.Name // the one object that it is about; zero: all
}

var _ cache.TransformingStore = &sink{}

var errType = errors.New("not an object of that kind")

func (s *sink) Add(o any) error    { return s.change(o, false) }
func (s *sink) Update(o any) error { return s.change(o, false) }
func (s *sink) Delete(o any) error { return s.change(o, true) }
func (s *sink) Resync() error      { return nil }

func (s *sink) change(o any, gone bool) error {
	obj, ok := o.(kube.API)
	if !ok {
		return errType
	}
	ref := kube.Ref{Kind: s.kind.name, Name: kube.Name{Namespace: obj.GetNamespace(), Name: obj.GetName()}}
	if gone {
		s.feed.change(ref, nil)
	} else {
		s.feed.change(ref, trim(obj))
	}
	return nil
}

func (s *sink) Replace(list []any, _ string) error {
	objs := make([]kube.API, 0, len(list))
	for _, o := range list {
		obj, ok := o.(kube.API)
		if !ok {
			return errType
		}
		objs = append(objs, trim(obj))
	}
	switch {
	case s.only.Name == "":
		s.feed.replace(s.kind.name, objs)
	case len(objs) == 0:
		s.feed.change(kube.Ref{Kind: s.kind.name, Name: s.only}, nil)
	default:
		s.feed.change(kube.Ref{Kind: s.kind.name, Name: s.only}, objs[0])
	}
	return nil
}

// Transformer makes reflectors forget early what nobody needs.
func (s *sink) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if obj, ok := o.(kube.API); ok {
			return trim(obj), nil
		}
		return o, nil
	}
}

// HasAddresses says what keeps a node from having pods here, if anything.
func HasAddresses(n *corev1.Node) error {
	if len(n.Spec.PodCIDRs) == 0 {
		return errors.New("it has no podCIDRs yet: is --allocate-node-cidrs set for the controller manager?")
	}
	return nil
}
