// Package integration runs `podgate gateway` beside a real control plane: etcd,
// kube-apiserver and kube-controller-manager on the loopback of a network
// namespace of the test's own, and kubectl. There are no kubelets: the test
// itself schedules pods and gives them addresses.
//
// The binaries are built once by build.sh, which needs the Go module proxy then;
// etcd is Debian's.
package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Where the programs are, for the process in the namespace.
const (
	binEnv     = "PODGATE_TEST_KUBERNETES"
	podgateEnv = "PODGATE_TEST_PODGATE"

	gatewayAPIEnv = "PODGATE_TEST_GATEWAY_API" // the Go module's folder
	policyAPIEnv  = "PODGATE_TEST_POLICY_API"
)

func TestMain(m *testing.M) {
	if os.Getenv(binEnv) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "lo: %v: %s\n", err, out)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	os.Exit(outside())
}

// outside builds what is needed and runs the tests in namespaces of their own.
func outside() int {
	fail := func(format string, args ...any) int {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
		return 1
	}
	if _, err := exec.LookPath("etcd"); err != nil {
		return fail("etcd is missing: apt-get install etcd-server")
	}
	var bin bytes.Buffer
	build := exec.Command("./build.sh")
	build.Stdout, build.Stderr = &bin, os.Stderr
	if err := build.Run(); err != nil {
		return fail("build.sh: %v", err)
	}
	dir, err := os.MkdirTemp("", "podgate-integration-")
	if err != nil {
		return fail("%v", err)
	}
	defer os.RemoveAll(dir)
	podgate := filepath.Join(dir, "podgate")
	compile := exec.Command("go", "build", "-o", podgate, "./cmd/podgate")
	compile.Dir = "../../.."
	if out, err := compile.CombinedOutput(); err != nil {
		return fail("build podgate: %v\n%s", err, out)
	}
	var modules []string
	for env, module := range map[string]string{gatewayAPIEnv: "sigs.k8s.io/gateway-api", policyAPIEnv: "sigs.k8s.io/network-policy-api"} {
		list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
		list.Dir = compile.Dir
		folder, err := list.Output()
		if err != nil {
			return fail("%s: %v", module, err)
		}
		modules = append(modules, env+"="+strings.TrimSpace(string(folder)))
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.Env = append(append(os.Environ(), modules...), binEnv+"="+strings.TrimSpace(bin.String()), podgateEnv+"="+podgate)
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		again.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		again.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		again.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := again.Run(); err != nil {
		return 1
	}
	return 0
}
