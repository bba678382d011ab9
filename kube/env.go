package kube

import corev1 "k8s.io/api/core/v1"

// ContainerEnv is the environment of a container, as NAME=value.
func ContainerEnv(st *State, pod *corev1.Pod, c *corev1.Container) ([]string, error) { return nil, nil }

// ExpandCommand replaces $(NAME) in a container's command and args by values of its environment.
func ExpandCommand(c *corev1.Container, env []string) (command, args []string) {
	return c.Command, c.Args
}
