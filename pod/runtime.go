package pod

import (
	"context"
	"errors"
	"io"

	"podgate/kube"
)

// Runtime keeps the sandboxes and processes of pods as the last State that it
// was given wants them.
type Runtime struct{ cfg Config }

// Start starts the keeper. It fails, naming what to look at, where the system
// does not let the user have namespaces.
func Start(ctx context.Context, cfg Config) (*Runtime, error) {
	return nil, errors.New("pod: no keeper yet")
}

// Sync makes the runtime work towards st; it returns at once.
func (r *Runtime) Sync(st *kube.State) {}

// Exec runs a command in a pod and returns its exit code, 128 plus the signal
// that ended it, or, together with an error that says why, 127 if the
// executable does not exist and 126 if it cannot be run. Cancelling ctx kills it.
func (r *Runtime) Exec(ctx context.Context, req ExecRequest) (int, error) { return 1, nil }

// Logs reads what a container wrote to stdout and stderr.
func (r *Runtime) Logs(pod kube.Name, container string, opt LogOptions) (io.ReadCloser, error) {
	return nil, nil
}

// Close ends every process and returns when no process, namespace, link, mount
// or file of any pod is left. A second Close does nothing.
func (r *Runtime) Close() error { return nil }

// IsKeeper says whether this process was started as a keeper; main (and
// TestMain) then calls KeeperMain before anything else and exits with its
// result.
func IsKeeper() bool { return false }

// KeeperMain is the keeper's life.
func KeeperMain() int { return 1 }
