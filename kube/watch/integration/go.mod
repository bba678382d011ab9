module podgate/kube/watch/integration

go 1.26.3
