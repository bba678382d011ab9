package kube

// Theory of operation
//
// A Watcher keeps the store's file-made objects equal to what some paths say.
// fsnotify tells that something may have changed, never what: after a quiet
// moment all paths are loaded again and handed to Store.Sync, which compares.
// Editors that write by renaming, files that are half written, several files in
// one save and events that were lost all come to the same.
//
// Folders are watched rather than files, for a watch on a file is lost when an
// editor replaces it.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Watcher watches manifests. Its Run is the only goroutine; the caller starts it
// and stops it by the context.
type Watcher struct {
	Store *Store
	Paths []string // files and folders, as given to Load; "-" is left alone
	Log   *slog.Logger

	// Quiet is how long nothing must happen before files are read; 100 ms if 0.
	Quiet time.Duration

	// Synced is called after each time that files were read, if not nil.
	Synced func(changes []Change, problems []Problem)
}

// Run watches until ctx ends. The files are read once at the start: what changed
// between a caller's Load and Run is not lost.
func (w *Watcher) Run(ctx context.Context) error {
	fw, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch manifests: %w (see sysctl fs.inotify.max_user_instances)", err)
	}
	defer fw.Close()
	quiet := w.Quiet
	if quiet == 0 {
		quiet = 100 * time.Millisecond
	}
	w.watchFolders(fw)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var since time.Time // the first event that was not followed by a reading
	// look reads the files after a quiet moment, but lets no storm put it off for ever.
	look := func() {
		if since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) < 10*quiet {
			timer.Reset(quiet)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-fw.Events:
			if !ok {
				return errors.New("watch manifests: the watch ended")
			}
			if w.concerns(e) {
				look()
			}
		case err, ok := <-fw.Errors:
			if !ok {
				return errors.New("watch manifests: the watch ended")
			}
			w.Log.Warn("watch manifests", "err", err)
			look() // events may have been lost
		case <-timer.C:
			since = time.Time{}
			w.watchFolders(fw)
			w.sync()
		}
	}
}

func (w *Watcher) sync() {
	m, problems := Load(w.files(), strings.NewReader(""))
	changes := w.Store.Sync(m.Objects, problems)
	for _, c := range changes {
		if c.Action != Unchanged {
			w.Log.Info("manifest", "change", c.String())
		}
	}
	if w.Synced != nil {
		w.Synced(changes, problems)
	}
}

// files are the paths without stdin, which was read once and for all.
func (w *Watcher) files() []string {
	var out []string
	for _, p := range w.Paths {
		if p != StdinName {
			out = append(out, p)
		}
	}
	return out
}

// watchFolders watches the folder of each file and each folder with all below
// it. Watching what is watched already does nothing.
func (w *Watcher) watchFolders(fw *fsnotify.Watcher) {
	add := func(dir string) {
		if err := fw.Add(dir); err != nil {
			w.Log.Warn("watch manifests", "folder", dir, "err", err)
		}
	}
	for _, p := range w.files() {
		if info, err := os.Stat(p); err != nil || !info.IsDir() {
			add(filepath.Dir(p))
			continue
		}
		_ = filepath.WalkDir(p, func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil || !e.IsDir():
				return nil
			case path != p && strings.HasPrefix(e.Name(), "."):
				return fs.SkipDir
			}
			add(path)
			return nil
		})
	}
}

// concerns leaves out what editors do beside changing manifests, and what else
// happens in the folder of a file.
func (w *Watcher) concerns(e fsnotify.Event) bool {
	name := filepath.Clean(e.Name)
	if e.Op == fsnotify.Chmod {
		return false
	}
	for _, p := range w.files() {
		p = filepath.Clean(p)
		if name == p {
			return true
		}
		below, inside := strings.CutPrefix(name, strings.TrimSuffix(p, "/")+"/")
		if p == "." {
			below, inside = name, !filepath.IsAbs(name)
		}
		base := filepath.Base(below)
		if inside && !strings.HasPrefix(base, ".") && (isManifest(base) || filepath.Ext(base) == "") {
			return true // without an extension it may be a folder
		}
	}
	return false
}
