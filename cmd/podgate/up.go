package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"podgate/control"
	"podgate/kube"
)

// detachedEnv marks the process that `up --detach` leaves behind; its descriptor
// 3 is the pipe on which it reports to the one that was typed.
const detachedEnv = "PODGATE_DETACHED"

func newUpCmd() *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use:   "up PATH...",
		Short: "Start the gateway and the pods of the manifests",
		Long: `Start the gateway and the pods of the manifests: files, folders, or - for
standard input. Folders and files are watched: what changes in them changes in
the cluster. Ends with everything taken down on SIGINT or SIGTERM; with --detach
it returns once every pod is attached and programmed.`,
		Example: `  podgate up examples/shop
  podgate up --detach examples/shop
  podgate --name test up --set ingress.http=127.0.0.1:9080 app.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("up: name manifests: files, folders, or -")}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "return once everything runs")
	addConfigFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, _ := cmd.Flags().GetString("name")
		if os.Getenv(detachedEnv) != "" {
			return upDetached(cmd, name, args)
		}
		if detach {
			return spawnDetached(cmd)
		}
		return upForeground(cmd, name, args)
	}
	return cmd
}

// plan reads everything that `up` needs before anything is started.
func plan(cmd *cobra.Command, args []string, warn func(string)) (config, *kube.Manifests, []kube.Problem, error) {
	file, _ := cmd.Flags().GetString("config")
	cfg, _, err := loadConfig(cmd.Flags(), file, args)
	if err != nil {
		return cfg, nil, nil, err
	}
	m, problems := kube.Load(args, cmd.InOrStdin())
	all, usable := checkObjects(cfg, m, problems)
	for _, p := range all {
		warn(sayProblem(p))
	}
	if usable == 0 {
		return cfg, m, problems, fmt.Errorf("nothing to run: no usable object in %s", strings.Join(args, ", "))
	}
	return cfg, m, problems, nil
}

func upForeground(cmd *cobra.Command, name string, args []string) error {
	say := func(s string) { fmt.Fprintln(cmd.ErrOrStderr(), s) }
	cfg, m, problems, err := plan(cmd, args, say)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: logLevel(cfg.LogLevel)}))
	g, err := startGateway(name, cfg, log, manifests{args, m, problems})
	if err != nil {
		return err
	}
	defer g.stop()
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	go func() { // ends with the process
		select {
		case <-signals:
		case <-g.quit:
		}
		cancel()
	}()
	err = g.awaitPods(ctx, say)
	if ctx.Err() == nil {
		if err != nil {
			return err
		}
		g.summary(cmd.OutOrStdout())
		say("Ctrl-C takes everything down.")
		<-ctx.Done()
		g.lameduck(signals)
	}
	say("taking everything down")
	return g.failure()
}

// report is a line from the detached process to the one that waits for it.
type report struct {
	Say   string `json:"say,omitempty"`
	Out   string `json:"out,omitempty"`
	Error string `json:"error,omitempty"`
	Usage bool   `json:"usage,omitempty"`
	Ready bool   `json:"ready,omitempty"`
}

// spawnDetached starts this command line again in a session of its own, relays
// what it says, and returns once it is ready or has failed.
func spawnDetached(cmd *cobra.Command) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Args[0] = "podgate"
	child.Env = append(os.Environ(), detachedEnv+"=1")
	child.Stdin = os.Stdin // `up --detach -` reads manifests from it
	child.ExtraFiles = []*os.File{w}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if err := child.Start(); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	w.Close()
	go func() { // ends with the process
		for s := range signals {
			child.Process.Signal(s)
		}
	}()
	for d := json.NewDecoder(r); ; {
		var rep report
		if err := d.Decode(&rep); err != nil {
			child.Wait()
			return fmt.Errorf("the detached process ended without a word: %v", child.ProcessState)
		}
		switch {
		case rep.Ready:
			return nil
		case rep.Error != "":
			child.Wait()
			if err := errors.New(rep.Error); !rep.Usage {
				return err
			}
			return usageError{errors.New(rep.Error)}
		case rep.Out != "":
			fmt.Fprint(cmd.OutOrStdout(), rep.Out)
		default:
			fmt.Fprintln(cmd.ErrOrStderr(), rep.Say)
		}
	}
}

// upDetached is `up` in the process that spawnDetached started.
func upDetached(cmd *cobra.Command, name string, args []string) error {
	os.Unsetenv(detachedEnv)
	syscall.CloseOnExec(3)
	pipe := os.NewFile(3, "report")
	tell := json.NewEncoder(pipe)
	fail := func(err error) error {
		var usage usageError
		tell.Encode(report{Error: err.Error(), Usage: errors.As(err, &usage)})
		return exitCode(1)
	}
	say := func(s string) { tell.Encode(report{Say: s}) }
	cfg, m, problems, err := plan(cmd, args, say)
	if err != nil {
		return fail(err)
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	signal.Ignore(syscall.SIGHUP)
	logTo := &lateWriter{}
	g, err := startGateway(name, cfg, slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: logLevel(cfg.LogLevel)})), manifests{args, m, problems})
	if err != nil {
		return fail(err)
	}
	defer g.stop()
	if err := logTo.open(filepath.Join(g.lock.dir, "podgate.log")); err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	go func() { // ends with the process
		select {
		case <-signals:
		case <-g.quit:
		}
		cancel()
	}()
	if err := g.awaitPods(ctx, say); err != nil {
		g.stop()
		return fail(cmpErr(g.failure(), err))
	}
	var summary strings.Builder
	g.summary(&summary)
	tell.Encode(report{Out: summary.String()})
	tell.Encode(report{Ready: true})
	pipe.Close()
	<-ctx.Done()
	g.lameduck(signals)
	return g.failure()
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (g *gateway) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failed
}

func logLevel(s string) (l slog.Level) {
	if err := l.UnmarshalText([]byte(s)); err != nil {
		return slog.LevelInfo
	}
	return l
}

// awaitPods waits until every pod is attached and its containers were started,
// then a moment longer for those that are about to be ready. It names what is
// in the way when ready.timeout passes.
func (g *gateway) awaitPods(ctx context.Context, say func(string)) error {
	tick, cancel := g.store.Subscribe()
	defer cancel()
	select {
	case <-g.attachments.opened: // for CNI too it is up then
	case <-ctx.Done():
		return cmpErr(g.failure(), ctx.Err())
	}
	attachBy := time.NewTimer(g.cfg.ReadyTimeout)
	defer attachBy.Stop()
	var readyBy <-chan time.Time
	said := ""
	for {
		st := g.store.State()
		if err := g.enforce(ctx); err != nil { // of st at least: who is ready is also reached
			return err
		}
		pending, unready, failed := podProgress(st)
		if failed != nil {
			return failed
		}
		n := podCount(st)
		if line := fmt.Sprintf("pods: %d of %d started, %d ready", n.Total-len(pending), n.Total, n.Ready); line != said {
			say(line)
			said = line
		}
		if len(pending) == 0 && len(unready) == 0 {
			return nil
		}
		if len(pending) == 0 && readyBy == nil {
			readyBy = time.After(readyGrace)
		}
		select {
		case <-ctx.Done():
			return cmpErr(g.failure(), ctx.Err())
		case <-tick:
		case <-readyBy:
			say("not ready yet: " + strings.Join(unready, ", "))
			return nil
		case <-attachBy.C:
			return fmt.Errorf("after %s these pods are not started: %s", g.cfg.ReadyTimeout, strings.Join(pending, ", "))
		}
	}
}

// readyGrace is how long awaitPods waits for readiness once all is started.
const readyGrace = 6 * time.Second

// podProgress lists pods that are not started, and those started but not ready,
// each with the reason. A pod whose sandbox cannot be made is a failure. Attached
// pods are somebody else's to start.
func podProgress(st *kube.State) (pending, unready []string, failed error) {
	for _, n := range sortedNames(st.Pods) {
		p := st.Pods[n]
		if kube.IsLocal(p) || kube.IsAttached(p) || p.DeletionTimestamp != nil {
			continue
		}
		why := podStatus(p)
		for _, c := range append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...) {
			if w := c.State.Waiting; w != nil && w.Message != "" {
				why = w.Reason + ": " + w.Message
			}
		}
		switch {
		case p.Status.Reason == "FailedCreatePodSandBox":
			return nil, nil, fmt.Errorf("pod %s: %s", n, p.Status.Message)
		case p.Status.Phase == corev1.PodPending && !started(p), p.Status.Phase == "":
			pending = append(pending, fmt.Sprintf("%s (%s)", n, why))
		case p.Status.Phase == corev1.PodSucceeded:
		case !kube.IsReady(p):
			unready = append(unready, fmt.Sprintf("%s (%s)", n, why))
		}
	}
	return pending, unready, nil
}

// started says whether the pod's sandbox is attached and its containers have
// been tried: from then on waiting is the pod's own doing.
func started(p *corev1.Pod) bool {
	for _, c := range append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...) {
		if c.State.Running != nil || c.State.Terminated != nil || c.LastTerminationState.Terminated != nil ||
			c.State.Waiting != nil && c.State.Waiting.Reason != "" && !slices.Contains([]string{"ContainerCreating", "PodInitializing"}, c.State.Waiting.Reason) {
			return true
		}
	}
	return false
}

// summary says what is reachable where.
func (g *gateway) summary(w io.Writer) {
	g.mu.Lock()
	st, listeners, problems := g.compiled.state, slices.Clone(g.listeners), g.compiled.problems
	g.mu.Unlock()
	n := podCount(st)
	fmt.Fprintf(w, "\ninstance %q: %d pods (%d ready), %d services, %d ingresses, %d network policies\n\n",
		g.name, n.Total, n.Ready, len(st.Services), len(st.Ingresses), len(st.NetworkPolicies))
	t := newTable(w, "REACHABLE AT", "WHAT")
	for _, l := range listeners {
		what := l.For
		if l.Problem != "" {
			what += " (problem: " + l.Problem + ")"
		}
		t.row(l.Address, what)
	}
	t.flush()
	if url := firstIngressURL(st, listeners); url != "" {
		fmt.Fprintf(w, "\ntry  %s\n", url)
	}
	for _, p := range problems {
		if p.Severity == kube.Error {
			fmt.Fprintf(w, "problem: %s\n", p)
		}
	}
	fmt.Fprintln(w)
}

// firstIngressURL is a command that asks the first Ingress rule.
func firstIngressURL(st *kube.State, listeners []control.Listener) string {
	i := slices.IndexFunc(listeners, func(l control.Listener) bool { return l.For == "Ingress (HTTP)" })
	if i < 0 {
		return ""
	}
	addr := strings.TrimSuffix(listeners[i].Address, "/tcp")
	for _, n := range sortedNames(st.Ingresses) {
		for _, r := range st.Ingresses[n].Spec.Rules {
			if r.Host != "" && !strings.HasPrefix(r.Host, "*") && r.HTTP != nil && len(r.HTTP.Paths) > 0 {
				path := r.HTTP.Paths[0].Path
				if i := strings.IndexAny(path, `(){}[]|\^$*+?'`); i >= 0 {
					path = path[:i] // a pattern: what begins like it
				}
				return fmt.Sprintf("curl -H 'Host: %s' http://%s%s", r.Host, addr, path)
			}
		}
	}
	return ""
}
