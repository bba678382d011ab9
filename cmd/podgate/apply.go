package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"podgate/control"
)

func newApplyCmd() *cobra.Command {
	return changeCmd("apply", "Create or change objects of a running instance", `  podgate apply -f deny-all.yaml
  kubectl create service clusterip web --tcp=80 --dry-run=client -o yaml | podgate apply -f -`)
}

func newDeleteCmd() *cobra.Command {
	return changeCmd("delete", "Delete objects from a running instance", `  podgate delete -f deny-all.yaml`)
}

func changeCmd(verb, short, example string) *cobra.Command {
	var paths []string
	var namespace string
	wait := true
	cmd := &cobra.Command{Use: verb + " -f PATH", Short: short, Example: example, Args: cobra.NoArgs,
		Long: short + ".\nReturns once the data path enforces the change."}
	if verb == "delete" {
		cmd.Long += "\nWaits until the pods that it deletes have ended."
		cmd.Flags().BoolVar(&wait, "wait", true, "wait until the deleted pods have ended")
	}
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "`file`, folder or - (standard input); may be repeated")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace of objects that name none")
	completeNamespaces(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(paths) == 0 {
			return usageError{fmt.Errorf("%s: name manifests with -f: files, folders, or -", verb)}
		}
		files, err := readManifests(paths, cmd.InOrStdin())
		if err != nil {
			return err
		}
		res, err := call[control.ApplyResult](cmd, verb, control.ApplyRequest{Files: files, Namespace: namespace, NoWait: !wait})
		if err != nil {
			return err
		}
		return printChanges(cmd, res.Changes)
	}
	return cmd
}

func printChanges(cmd *cobra.Command, changes []control.Change) error {
	bad := 0
	for _, c := range changes {
		if c.Error {
			bad++
			fmt.Fprintln(cmd.ErrOrStderr(), "error:", c.Text)
			continue
		}
		fmt.Fprintln(cmd.OutOrStdout(), c.Text)
	}
	if bad > 0 {
		return exitCode(1)
	}
	return nil
}

// readManifests reads what -f names, as the client's user and from its working
// directory; the instance may have another.
func readManifests(paths []string, stdin io.Reader) ([]control.File, error) {
	var files []control.File
	read := func(name string) error {
		data, err := os.ReadFile(name)
		if err == nil {
			files = append(files, control.File{Name: name, Data: string(data)})
		}
		return err
	}
	for _, p := range paths {
		if p == "-" {
			data, err := io.ReadAll(stdin)
			if err != nil {
				return nil, err
			}
			files = append(files, control.File{Name: "-", Data: string(data)})
			continue
		}
		err := filepath.WalkDir(p, func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir():
				return nil
			case name != p && !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)), name != p && d.Name() == "podgate.yaml":
				return nil
			}
			return read(name)
		})
		if err != nil {
			var e *fs.PathError
			if errors.As(err, &e) {
				err = fmt.Errorf("%s: %w", e.Path, e.Err) // without the system call's name
			}
			return nil, err
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no manifests (*.yaml, *.yml, *.json) in %s", strings.Join(paths, ", "))
	}
	return files, nil
}
