package main

import (
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"

	"podgate/stack/link/ns"
)

// pair is two pods on a gateway process that is told what to do in lines, and
// answers with JSON.
type pair struct {
	client, server *ns.NS
	pid            int
	in             io.Writer
	out            *json.Decoder
}

// pair starts the gateway process that plays role, for a client at 10.244.0.4
// and a server at 10.244.0.5.
func (r *rig) pair(role string, n int) (*pair, error) {
	client, server, err := r.hosts()
	if err != nil {
		return nil, err
	}
	kind := "TAP"
	g := pairSpec{N: n}
	var files []*os.File
	for i, host := range []*ns.NS{client, server} {
		fd, err := r.eth0(host, kind, 1500)
		if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
			kind = "veth"
			fd, err = r.eth0(host, kind, 1500)
		}
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), kind)
		defer f.Close()
		files = append(files, f)
		pod := podSpec{Kind: kind, Name: host.Name, Addr: netip.AddrFrom4([4]byte{10, 244, 0, byte(4 + i)}), MTU: 1500}
		err = errors.Join(host.MAC("eth0", pod.mac()), host.Addr("eth0", netip.PrefixFrom(pod.Addr, 16)), host.Route(everything, gatewayAddr))
		if err != nil {
			return nil, err
		}
		g.Pods = append(g.Pods, pod)
	}
	spec, err := json.Marshal(g)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", role, string(spec))
	cmd.ExtraFiles, cmd.Stderr = files, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r.closers = append(r.closers, func() {
		in.Close() // is how it learns to end
		cmd.Wait()
	})
	return &pair{client, server, cmd.Process.Pid, in, json.NewDecoder(out)}, nil
}

// pairSpec tells that process what it serves.
type pairSpec struct {
	Pods []podSpec // client and server
	N    int
}
