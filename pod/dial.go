package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

// dialTime is how long a listener on loopback may take, its backlog being full.
// The pod cannot be destroyed meanwhile.
const dialTime = 2 * time.Second

// Dial connects to a TCP port of a pod's loopback, IPv4 before IPv6, as kubectl
// port-forward does: what listens there need not be open to anybody else, and
// neither Services nor policies are asked. The socket is the pod's and the
// caller's to close; nothing of it passes the gateway.
func (r *Runtime) Dial(ctx context.Context, pod kube.Name, port uint16) (*os.File, error) {
	w, err := r.find(pod)
	if err != nil {
		return nil, err
	}
	var id string
	if err := w.askErr(ctx, func() error {
		if phase := w.phase(); phase != corev1.PodRunning {
			return fmt.Errorf("unable to forward port because pod is not running. Current status=%s", phase)
		}
		id = w.id()
		return nil
	}); err != nil {
		return nil, err
	}
	a, err := r.keeper.call(request{Dial: &dialSpec{Sandbox: id, Port: port}})
	if err != nil {
		return nil, err
	}
	if len(a.files) != 1 {
		closeAll(a.files)
		return nil, errors.New("the keeper sent no socket")
	}
	return a.files[0], nil
}

// dial connects on a thread inside the sandbox: where a socket is made is where
// it stays.
func (k *keeper) dial(s dialSpec) (socket *os.File, err error) {
	sb, release, err := k.hold(s.Sandbox)
	if err != nil {
		return nil, err
	}
	defer release()
	err = onThread(func() error {
		if sb.net != nil {
			if err := unix.Setns(int(sb.net.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace: %w", err)
			}
		}
		var refused error
		for _, loopback := range []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback} {
			c, err := (&net.Dialer{Timeout: dialTime}).Dial("tcp", (&net.TCPAddr{IP: loopback, Port: int(s.Port)}).String())
			if err != nil {
				if refused == nil {
					refused = err
				}
				continue
			}
			defer c.Close()
			socket, err = c.(*net.TCPConn).File()
			return err
		}
		return refused
	})
	return socket, err
}
