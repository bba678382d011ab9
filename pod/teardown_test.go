package pod_test

func doomedGateway(string) {}
