package local

type egress struct{}

func startEgress(*Stack) *egress { return &egress{} }
func (*egress) close()           {}
