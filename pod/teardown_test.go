package pod_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
	"podgate/pod"
)

// marked lists the processes of this machine with a marker in their environment.
func marked(t *testing.T, marker string) (list []string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range dirs {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(marker)) {
			cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
			list = append(list, strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return list
}

// busy are pods with all that could be left behind, each process marked.
func busy(marker string) []*corev1.Pod {
	name, value, _ := strings.Cut(marker, "=")
	mark := func(p *corev1.Pod) { p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: name, Value: value}} }
	pods := []*corev1.Pod{
		newPod(1, "idle", mark),
		newPod(2, "kind", mark, works("sleep")),
		newPod(3, "stubborn", mark, works("stubborn")),
		newPod(4, "daemon", mark, works("daemon", "0")),
		newPod(5, "host", mark, works("stubborn"), func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		newPod(6, "volume", mark, works("sleep"), func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/podgate-test"}}
		}),
	}
	return pods
}

func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCloseLeavesNothing(t *testing.T) {
	before := mounts(t)
	marker := "PODGATE_TEST_MARK=" + filepath.Base(t.TempDir()) + strconv.Itoa(os.Getpid())
	w := start(t, nil)
	w.run(busy(marker)...)
	for _, name := range []string{"idle", "kind", "stubborn", "host", "volume"} {
		w.awaitReady(name)
	}
	if len(marked(t, marker)) == 0 {
		t.Fatal("no process carries the marker")
	}
	w.check(w.rt.Close())
	if left := marked(t, marker); len(left) > 0 {
		t.Errorf("processes left: %q", left)
	}
	if after := mounts(t); after != before {
		t.Errorf("mounts were\n%s\nand are\n%s", before, after)
	}
	w.check(w.rt.Close())
	if _, err := w.rt.Exec(context.Background(), pod.ExecRequest{Pod: podName("idle"), Command: []string{"true"}}); err == nil {
		t.Error("exec works after Close")
	}
}

// doomedGateway runs busy pods until it is killed.
func doomedGateway(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	lock, err := os.Open(filepath.Join(dir, "lock"))
	fail(err)
	fail(unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	fail(os.WriteFile(filepath.Join(dir, "socket"), nil, 0o600))
	self, err := os.Executable()
	fail(err)
	pods := map[kube.Name]*corev1.Pod{}
	running := make(chan string, 100)
	rt, err := pod.Start(context.Background(), pod.Config{
		Dir: dir, Lock: lock, Remove: []string{filepath.Join(dir, "socket")},
		Images:   map[string][]string{"workload": {self, "workload"}},
		Gateway:  []netip.Addr{node4, node6},
		PodCIDRs: cluster,
		Attach:   func(context.Context, *corev1.Pod, pod.NIC) error { return nil },
		Detach:   func(kube.Name) {},
		Gone:     func(kube.Name, string) {},
		Status: func(name kube.Name, _ string, st corev1.PodStatus) {
			if isReady(&corev1.Pod{Status: st}) {
				running <- name.Name
			}
		},
	})
	fail(err)
	for _, p := range busy(os.Getenv("PODGATE_TEST_MARK_ENV")) {
		pods[podName(p.Name)] = p
	}
	rt.Sync(&kube.State{Pods: pods})
	for seen := map[string]bool{}; len(seen) < 5; {
		if name := <-running; name != "daemon" {
			seen[name] = true
		}
	}
	fmt.Println("up")
	select {}
}

func TestKilledGatewayLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	marker := "PODGATE_TEST_MARK=" + filepath.Base(dir) + strconv.Itoa(os.Getpid())
	cmd := exec.Command("/proc/self/exe", "doomed-gateway", dir)
	cmd.Env = append(os.Environ(), marker, "PODGATE_TEST_MARK_ENV="+marker)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if l, err := bufio.NewReader(out).ReadString('\n'); l != "up\n" {
		t.Fatalf("gateway: %q, %v", l, err)
	}
	if n := len(marked(t, marker)); n < 6 { // gateway, keeper, four pods
		t.Fatalf("%d processes carry the marker", n)
	}
	cmd.Process.Kill()
	cmd.Wait()
	// The lock is held by the keeper until all is gone.
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("files left: %v, %v", left, err)
	}
	w := &world{t: t}
	w.eventually("the keeper's end", func() bool { return len(marked(t, marker)) == 0 })
}

func TestKeeperThatIsKilledIsNoticed(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a", works("sleep")))
	w.awaitReady("a")
	for _, c := range keepers(t) {
		unix.Kill(c, unix.SIGKILL)
	}
	<-w.rt.Done()
	if _, _, err := w.exec("a", "echo"); err == nil {
		t.Error("exec works without a keeper")
	}
}

// keepers lists the keeper processes that are children of this process.
func keepers(t testing.TB) (pids []int) {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		// pid (comm) state ppid
		rest := b[bytes.LastIndexByte(b, ')')+1:]
		fields := strings.Fields(string(rest))
		cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) && bytes.HasPrefix(cmd, []byte("podgate-keeper")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}
