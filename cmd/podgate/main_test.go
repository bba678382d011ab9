package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cnitool "github.com/containernetworking/cni/cnitool/cmd"
	"golang.org/x/sys/unix"

	"podgate/cni"
	"podgate/pod"
	"podgate/stack/link/nstest"
)

// TestMain makes this binary podgate itself wherever it is started under that
// name, as keeper or by the tests, its CNI plugin, cnitool, a pod's gRPC server, or
// a client of HTTP/3; the tests run in a network namespace of their own.
func TestMain(m *testing.M) {
	if pod.IsKeeper() {
		os.Exit(pod.KeeperMain())
	}
	switch filepath.Base(os.Args[0]) {
	case "podgate":
		os.Exit(run(os.Args[1:]))
	case "h3get":
		os.Exit(h3get(os.Args[1], os.Args[2]))
	case "podgate-cni":
		os.Exit(cni.Main("test"))
	case "cnitool":
		if cnitool.Execute() != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case "grpc-health":
		serveHealth()
	}
	nstest.Main(m)
}

// varLib hides the machine's /var/lib: cnitool writes there.
var varLib = sync.OnceValue(func() error { return unix.Mount("none", "/var/lib", "tmpfs", 0, "") })

// shell is a place to type commands in: podgate on the PATH, instances in a
// folder of its own.
type shell struct {
	t   *testing.T
	env []string
	dir string // working directory
}

func newShell(t *testing.T) *shell {
	t.Helper()
	if err := varLib(); err != nil {
		t.Fatal(err)
	}
	bin, runtime := t.TempDir(), shortTempDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"podgate", "podgate-cni", "cnitool", "grpc-health", "h3get"} {
		if err := os.Symlink(self, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return &shell{t, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH")+":/usr/sbin:/sbin",
		"XDG_RUNTIME_DIR="+runtime, "XDG_STATE_HOME="+t.TempDir(), "CNI_PATH="+bin+":/usr/lib/cni"), root}
}

// in is the same shell, failing another test.
func (s *shell) in(t *testing.T) *shell { return &shell{t, s.env, s.dir} }

// shortTempDir is short enough for a unix socket's path.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// result is what a command left behind.
type result struct {
	code        int
	out, errOut string
}

// runTime is what a command line is given, on a machine that does much else.
const runTime = 2 * time.Minute

// run runs a command line and returns how it ended. Go programs that do not end
// in time say where they are.
func (s *shell) run(line string) result { return s.runWith(line, "") }

func (s *shell) runWith(line, stdin string) result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runTime) // not the test's: clean-up runs commands too
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Env, cmd.Dir = s.env, s.dir
	cmd.Stdin = strings.NewReader(stdin)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGQUIT) }
	cmd.WaitDelay = 10 * time.Second // then whoever still holds its output
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		s.t.Errorf("%s: still running after %v\n%s%s", line, runTime, &out, &errOut)
	case err != nil && !errors.As(err, &exit):
		s.t.Errorf("%s: %v\n%s%s", line, err, &out, &errOut)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// must runs a command line that has to succeed and returns its output.
func (s *shell) must(line string) string {
	s.t.Helper()
	r := s.run(line)
	if r.code != 0 {
		s.t.Fatalf("%s: exit code %d\n%s%s", line, r.code, r.out, r.errOut)
	}
	return r.out
}

// up starts an instance and takes it down with the test.
func (s *shell) up(args string) {
	s.t.Helper()
	s.t.Cleanup(func() {
		if r := s.run("podgate status -o json"); r.code == 0 {
			s.must("podgate down")
		}
	})
	s.must("podgate up --detach " + args)
}

func write(t *testing.T, name, data string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(f, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}
