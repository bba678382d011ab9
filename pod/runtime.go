package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"podgate/kube"
)

// Runtime keeps the sandboxes and processes of pods as the last State that it
// was given wants them.
type Runtime struct {
	cfg    Config
	keeper *client
	dir    string   // everything that is written, removed at the end
	host   Resolver // the node's
	path   string   // PATH of containers
	slots  chan struct{}
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // workers, and what they start

	mu     sync.Mutex
	state  *kube.State
	pods   map[kube.Name]*worker
	closed bool
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = systemClock{}
	}
	c.ClusterDomain = cmp.Or(c.ClusterDomain, "cluster.local")
	c.NodeName = cmp.Or(c.NodeName, "podgate")
	c.MTU = cmp.Or(c.MTU, 65520)
	c.StopTime = cmp.Or(c.StopTime, 2*time.Second)
	c.LogBytes = cmp.Or(c.LogBytes, 4<<20)
	return c
}

// Start starts the keeper. It fails, naming what to look at, where the system
// does not let the user have namespaces.
func Start(ctx context.Context, cfg Config) (_ *Runtime, err error) {
	cfg = cfg.withDefaults()
	if cfg.Self == "" {
		if cfg.Self, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("start pods: %w", err)
		}
	}
	r := &Runtime{
		cfg:   cfg,
		host:  hostResolver(),
		slots: make(chan struct{}, 4*runtime.NumCPU()),
		pods:  map[kube.Name]*worker{},
	}
	setup, err := r.layout()
	if err != nil {
		return nil, fmt.Errorf("start pods: %w", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(r.dir)
		}
	}()
	if r.keeper, err = startKeeper(cfg.Exe, cfg.Lock); err != nil {
		return nil, err
	}
	if _, err := r.keeper.call(request{Setup: setup}); err != nil {
		r.keeper.wire.conn.Close()
		<-r.keeper.gone
		return nil, forbidden(err)
	}
	if err := ctx.Err(); err != nil {
		r.keeper.wire.conn.Close()
		<-r.keeper.gone
		return nil, err
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// layout makes the runtime's directory. Its name is new each time: the keeper
// of a gateway that was killed may still be removing the one before.
func (r *Runtime) layout() (*setupSpec, error) {
	dir, err := os.MkdirTemp(r.cfg.Dir, "pods-")
	if err != nil {
		return nil, err
	}
	r.dir = dir
	for _, d := range []string{"root", "bin", "pods", "claims"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	// Bound, not linked: `go run` removes the program while a detached gateway lives.
	bin := filepath.Join(dir, "bin")
	self := filepath.Join(bin, "podgate")
	if err := os.WriteFile(self, nil, 0o755); err != nil {
		return nil, err
	}
	r.path = containerPath(os.Getenv("PATH"), bin)
	s := &setupSpec{
		Dir:     dir,
		Remove:  r.cfg.Remove,
		NICKind: r.cfg.NICKind,
		Binds:   []bind{{Source: r.cfg.Self, Target: self}},
	}
	if host, err := os.ReadFile("/etc/nsswitch.conf"); err == nil {
		f := filepath.Join(dir, "nsswitch.conf")
		if err := os.WriteFile(f, switchFile(host), 0o644); err != nil {
			return nil, err
		}
		s.Binds = append(s.Binds, bind{Source: f, Target: "/etc/nsswitch.conf"})
	}
	// nscd would answer with the host's names.
	s.Binds = append(s.Binds, bind{Source: filepath.Join(dir, "root"), Target: "/run/nscd"})
	return s, nil
}

// Done is closed when the keeper has ended, which it does by itself only if
// somebody kills it; no pod is left then.
func (r *Runtime) Done() <-chan struct{} { return r.keeper.gone }

// Sync makes the runtime work towards st; it returns at once. A State of a lower
// generation than one seen before, which came late, is ignored.
func (r *Runtime) Sync(st *kube.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.state != nil && st.Generation < r.state.Generation {
		return
	}
	r.state = st
	r.reconcile()
}

// reconcile is called with mu held.
func (r *Runtime) reconcile() {
	for name, w := range r.pods {
		if p := r.state.Pods[name]; p == nil || string(p.UID) != w.uid {
			w.doom()
		}
	}
	for name, p := range r.state.Pods {
		if kube.IsLocal(p) || kube.IsAttached(p) {
			continue
		}
		w := r.pods[name]
		switch {
		case w == nil && p.DeletionTimestamp != nil:
			r.wg.Go(func() { r.cfg.Gone(name, string(p.UID)) })
		case w == nil:
			w = newWorker(r, p)
			r.pods[name] = w
			r.wg.Go(w.run)
		case w.uid == string(p.UID):
			w.update(p)
		}
	}
}

// gone is a worker's last call. A new pod of the same name may have been waiting.
func (r *Runtime) gone(w *worker) {
	r.cfg.Gone(w.name, w.uid)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pods, w.name)
	if !r.closed {
		r.reconcile()
	}
}

// wanted is the newest State.
func (r *Runtime) wanted() *kube.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// find returns the worker of a pod.
func (r *Runtime) find(name kube.Name) (*worker, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.pods[name]; w != nil {
		return w, nil
	}
	return nil, fmt.Errorf("pods %q not found in namespace %q", name.Name, name.Namespace)
}

// Close ends every process and returns when no process, namespace, link, mount
// or file of any pod is left. A second Close does nothing.
func (r *Runtime) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	_, err := r.keeper.call(request{Shutdown: &shutdownSpec{Millis: r.cfg.StopTime.Milliseconds()}})
	if errors.Is(err, errKeeperGone) { // as it should
		err = nil
	}
	<-r.keeper.gone
	r.keeper.wire.conn.Close()
	r.wg.Wait()
	return errors.Join(err, os.RemoveAll(r.dir))
}
