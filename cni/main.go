package cni

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

var supported = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Main is the plugin: it does what the environment says and returns the
// process's exit code. What it prints names the version that it was asked in,
// errors and the answer to VERSION too (section 5 of the specification).
func Main(about string) int {
	asked := current.ImplementedSpecVersion
	if command := os.Getenv("CNI_COMMAND"); command != "" {
		given, err := rereadable(&os.Stdin)
		if err != nil {
			return fail(asked, types.NewError(types.ErrIOFailure, "cannot read the network configuration", err.Error()))
		}
		var conf struct {
			CNIVersion string `json:"cniVersion"`
		}
		err = json.Unmarshal(given, &conf)
		if conf.CNIVersion != "" {
			asked = conf.CNIVersion
		}
		if command == "VERSION" {
			if err != nil && len(given) > 0 {
				return fail(asked, types.NewError(types.ErrDecodingFailure, "cannot decode what VERSION is asked with", err.Error()))
			}
			return printJSON(map[string]any{"cniVersion": asked, "supportedVersions": supported})
		}
	}
	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}, version.PluginSupports(supported...), about)
	if err == nil {
		return 0
	}
	return fail(asked, err)
}

// rereadable reads a file to its end and puts a pipe with the same in its place.
// The pipe's writer is a goroutine that ends with the process, or with the last
// reader.
func rereadable(f **os.File) ([]byte, error) {
	data, err := io.ReadAll(*f)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func() { w.Write(data); w.Close() }()
	*f = r
	return data, nil
}

// fail prints the specification's error object.
func fail(asked string, e *types.Error) int {
	printJSON(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{asked, e})
	return 1
}

func printJSON(v any) int {
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "    ")
	if err := out.Encode(v); err != nil {
		fmt.Fprintln(os.Stderr, "podgate-cni:", err)
		return 1
	}
	return 0
}
