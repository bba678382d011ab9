package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"podgate/cni"
	"podgate/control"
	"podgate/kube"
)

// memo is an attachment as it is written down.
type memo struct {
	control.Attachment
	Boot string `json:"boot"` // of the machine: no namespace outlives it
}

// stateDir is where an instance keeps what outlives it; empty if there is no
// such place.
func stateDir(cfg config, name string) string {
	base := cfg.StateDir
	switch {
	case base != "":
	case os.Getenv("XDG_STATE_HOME") != "":
		base = filepath.Join(os.Getenv("XDG_STATE_HOME"), "podgate")
	case os.Getuid() == 0:
		base = "/var/lib/podgate"
	default:
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		base = filepath.Join(home, ".local/state/podgate")
	}
	return filepath.Join(base, name, "attachments")
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// memoFile is where an attachment is written down; containers and interfaces
// have names that are none of files.
func (g *gateway) memoFile(a *attachment) string {
	sum := sha256.Sum256([]byte(a.Request.Container + " " + a.Request.IfName))
	return filepath.Join(g.stateDir, hex.EncodeToString(sum[:16])+".json")
}

// remember writes an attachment down. It need not survive the machine, so nothing
// is forced to the disk.
func (g *gateway) remember(a *attachment) error {
	if g.stateDir == "" {
		return errors.New("there is nowhere to write the attachment down: set state.dir")
	}
	data, err := json.Marshal(memo{a.Attachment, bootID()})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(g.stateDir, 0o700); err != nil {
		return fmt.Errorf("write the attachment down: %w", err)
	}
	f := g.memoFile(a)
	if err := os.WriteFile(f+".new", data, 0o600); err != nil {
		return fmt.Errorf("write the attachment down: %w", err)
	}
	return os.Rename(f+".new", f)
}

func (g *gateway) unremember(a *attachment) {
	if a.Request.Network == "" {
		return
	}
	if err := os.Remove(g.memoFile(a)); err != nil && !errors.Is(err, os.ErrNotExist) {
		g.log.Error("forget the attachment", "pod", a.pod, "err", err)
	}
}

// restore makes pods of the attachments that were written down, so that nobody
// else is given their addresses. They wait for their descriptors.
func (g *gateway) restore() {
	if g.stateDir == "" {
		return
	}
	files, _ := filepath.Glob(filepath.Join(g.stateDir, "*"))
	for _, f := range files {
		var m memo
		data, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(data, &m)
		}
		if err != nil || m.Boot != bootID() || filepath.Ext(f) != ".json" { // half written, or of a machine that was
			os.Remove(f)
			continue
		}
		a := &attachment{Attachment: m.Attachment, pod: kube.Name{Namespace: m.Request.Namespace, Name: m.Request.Pod}, made: make(chan struct{})}
		close(a.made)
		plan := a.Plan
		if err := g.adopt(a); err != nil {
			g.log.Error("attachment is given up", "pod", a.pod, "container", m.Request.Container, "err", err)
			os.Remove(f)
			continue
		}
		a.Plan, a.Waiting = plan, true
		g.attachments.put(a)
	}
}

// reopen opens the interfaces of restored attachments; policies are in force.
// Those that it may not open wait for a plugin.
func (g *gateway) reopen() {
	for _, a := range g.attachments.list() {
		if !g.attachments.waits(a) {
			continue
		}
		i := cni.Interface{Netns: a.Request.Netns, Name: a.Request.IfName, Owner: a.Request.Container}
		nic, err := i.Reopen(a.Plan.Kind, a.Plan.HostIf)
		if err == nil {
			err = g.serveAgain(a, nic)
		}
		if err != nil {
			g.log.Warn("attachment waits for the plugin", "pod", a.pod, "netns", a.Request.Netns, "err", err)
		}
	}
}

func (g *gateway) serveAgain(a *attachment, nic control.NIC) error {
	if err := g.connect(a, nic); err != nil {
		return err
	}
	g.attachments.mu.Lock()
	a.Waiting = false
	g.attachments.mu.Unlock()
	g.store.MarkReady(a.pod)
	g.log.Info("attached again", "pod", a.pod)
	return nil
}

// attachAgain takes a descriptor for an attachment that waits for it.
func (g *gateway) attachAgain(q control.AttachRequest, build func(control.AttachPlan) (control.NIC, error)) error {
	a := g.attachments.get(control.Endpoint{Container: q.Container, IfName: q.IfName})
	if a == nil {
		return fmt.Errorf("%s of container %s is not attached", q.IfName, q.Container)
	}
	<-a.made
	if !g.attachments.waits(a) {
		return fmt.Errorf("%s of container %s is served", q.IfName, q.Container)
	}
	nic, err := build(a.Plan)
	if err != nil {
		return err
	}
	return g.serveAgain(a, nic)
}
