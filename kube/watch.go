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
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-fw.Events:
			if !ok {
				return errors.New("watch manifests: the watch ended")
			}
			if w.concerns(e) {
				timer.Reset(quiet)
			}
		case err, ok := <-fw.Errors:
			if !ok {
				return errors.New("watch manifests: the watch ended")
			}
			w.Log.Warn("watch manifests", "err", err)
			timer.Reset(quiet) // events may have been lost: look
		case <-timer.C:
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

// concerns leaves out what editors and reading do beside changing manifests.
func (w *Watcher) concerns(e fsnotify.Event) bool {
	return e.Op != fsnotify.Chmod && !strings.HasPrefix(filepath.Base(e.Name), ".")
}
