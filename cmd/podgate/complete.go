package main

import (
	"encoding/json"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/control"
)

// Shell completion asks the instance that the command line names. What cannot be
// asked completes to nothing.

func objectNames(cmd *cobra.Command, kindName, namespace string) (names []string) {
	res, err := call[control.GetResult](cmd, "get", control.GetRequest{Kind: kindName, Namespace: namespace})
	if err != nil {
		return nil
	}
	for _, item := range res.Items {
		var o metav1.PartialObjectMetadata
		if json.Unmarshal(item, &o) == nil && o.Name != "" {
			names = append(names, o.Name)
		}
	}
	return names
}

func namespaceFlag(cmd *cobra.Command) string {
	ns, _ := cmd.Flags().GetString("namespace")
	return ns
}

func completeGet(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return kindNames(), cobra.ShellCompDirectiveNoFileComp
	}
	k, err := findKind(args[0])
	if err != nil || k.apiKind == "" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	namespace := ""
	if k.namespaced {
		namespace = namespaceFlag(cmd)
	}
	return objectNames(cmd, k.name, namespace), cobra.ShellCompDirectiveNoFileComp
}

// completePod completes the first argument to a pod's name, and the following
// ones to then.
func completePod(then ...string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			return objectNames(cmd, "pods", namespaceFlag(cmd)), cobra.ShellCompDirectiveNoFileComp
		case 1:
			if len(then) > 0 {
				return then, cobra.ShellCompDirectiveNoFileComp
			}
		}
		return nil, cobra.ShellCompDirectiveDefault
	}
}

// completeNamespaces completes the values of -n.
func completeNamespaces(cmd *cobra.Command) {
	cmd.RegisterFlagCompletionFunc("namespace", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return objectNames(cmd, "namespaces", ""), cobra.ShellCompDirectiveNoFileComp
	})
}

// completeContainers completes the values of -c for the pod that is named.
func completeContainers(cmd *cobra.Command) {
	cmd.RegisterFlagCompletionFunc("container", func(cmd *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		res, err := call[control.GetResult](cmd, "get", control.GetRequest{Kind: "pods", Namespace: namespaceFlag(cmd), Name: strings.TrimPrefix(args[0], "pod/")})
		if err != nil || len(res.Items) != 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var o corev1.Pod
		if json.Unmarshal(res.Items[0], &o) == nil {
			for _, c := range append(o.Spec.InitContainers, o.Spec.Containers...) {
				names = append(names, c.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
}
