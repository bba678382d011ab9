package cni

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"podgate/control"
)

// config is the object of the plugin in a network configuration.
type config struct {
	types.PluginConf

	Instance string `json:"instance"` // of podgate; "default"
	Socket   string `json:"socket"`   // its control socket, instead of where the instance has it
	Attach   string `json:"attach"`   // "tap", "veth", or "auto"

	// The keys of the bridge plugin, with their meaning.
	Bridge           string `json:"bridge"`           // there is none
	IsGateway        *bool  `json:"isGateway"`        // IPAM's gateway is podgate's; true
	IsDefaultGateway bool   `json:"isDefaultGateway"` // and the default route leads to it
	ForceAddress     bool   `json:"forceAddress"`     // of the bridge
	IPMasq           bool   `json:"ipMasq"`           // it is always so
	IPMasqBackend    string `json:"ipMasqBackend"`
	MTU              int    `json:"mtu"`         // the gateway's if 0
	HairpinMode      bool   `json:"hairpinMode"` // it is always so
	PromiscMode      bool   `json:"promiscMode"` // another way to hairpin
	MacSpoofChk      bool   `json:"macspoofchk"` // it is always so
	EnableDad        bool   `json:"enabledad"`   // addresses are unique by construction
	Vlan             int    `json:"vlan"`
	VlanTrunk        []any  `json:"vlanTrunk"`
	DefaultVlan      *bool  `json:"preserveDefaultVlan"`
	PortIsolation    bool   `json:"portIsolation"`
	DisableInterface bool   `json:"disableContainerInterface"`

	RuntimeConfig runtimeConfig `json:"runtimeConfig"`
	Args          struct {
		CNI struct {
			IPs    []string `json:"ips"`
			MAC    string   `json:"mac"`
			Labels []struct {
				Key   string `json:"key"`
				Value string `json:"value"`
			} `json:"labels"`
		} `json:"cni"`
	} `json:"args"`

	pool *pool // its own IPAM with ranges
	env  envArgs
}

// runtimeConfig are the capabilities that the plugin knows.
type runtimeConfig struct {
	PortMappings []control.HostPort `json:"portMappings"`
	Bandwidth    *struct {
		IngressRate  int64 `json:"ingressRate"` // bits a second, to the pod
		IngressBurst int64 `json:"ingressBurst"`
		EgressRate   int64 `json:"egressRate"`
		EgressBurst  int64 `json:"egressBurst"`
	} `json:"bandwidth"`
	IPs []string `json:"ips"`
	MAC string   `json:"mac"`
	DNS *struct {
		Servers  []string `json:"servers"`
		Searches []string `json:"searches"`
		Options  []string `json:"options"`
	} `json:"dns"`
	IPRanges []rangeSet `json:"ipRanges"`
	Aliases  []string   `json:"aliases"`
}

// envArgs are what CNI_ARGS may say.
type envArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE          types.UnmarshallableString
	K8S_POD_NAME               types.UnmarshallableString
	K8S_POD_UID                types.UnmarshallableString
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
	IP                         types.UnmarshallableString
	MAC                        types.UnmarshallableString
}

// keys are those of a network configuration that the plugin knows; each else
// is a mistake, but for the runtime's own, which begin with cni.dev/.
var keys = []string{
	"cniVersion", "cniVersions", "name", "type", "capabilities", "ipam", "dns", "prevResult", "runtimeConfig", "args", "disableCheck", "disableGC",
	"instance", "socket", "attach",
	"bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "mtu", "hairpinMode", "promiscMode", "macspoofchk", "enabledad",
	"vlan", "vlanTrunk", "preserveDefaultVlan", "portIsolation", "disableContainerInterface",
}

func invalid(format string, a ...any) *types.Error {
	return types.NewError(types.ErrInvalidNetworkConfig, "invalid network configuration", fmt.Sprintf(format, a...))
}

func unsupported(key string, value any) *types.Error {
	return types.NewError(types.ErrUnsupportedField, fmt.Sprintf("unsupported field %q: %v", key, value), "podgate has no VLANs and no isolated ports; NetworkPolicy isolates pods")
}

// load reads a configuration. It is strict where an interface is to be made;
// what takes one away is not to fail over what ADD has refused.
func load(args *skel.CmdArgs, strict bool) (*config, error) {
	c := &config{}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "cannot decode the network configuration", jsonPlace(err))
	}
	if err := types.LoadArgs(args.Args, &c.env); err != nil && strict {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS", err.Error())
	}
	if c.IPAM.Type == "" || c.IPAM.Type == ownIPAM || c.IPAM.Type == hostLocal && !installed(hostLocal) {
		pool, err := loadPool(c, args.StdinData)
		if err != nil && strict {
			return nil, err
		}
		c.pool = pool
	}
	if !strict {
		return c, nil
	}
	if strings.Contains(args.IfName, "%") { // the kernel would put a number there
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME", fmt.Sprintf("interface name contains a percent sign: %q", args.IfName))
	}
	return c, c.check(args.StdinData)
}

// jsonPlace says where a value of a wrong type is.
func jsonPlace(err error) string {
	if t, ok := err.(*json.UnmarshalTypeError); ok {
		return fmt.Sprintf("%s: must be a %s and not a %s", t.Field, t.Type, t.Value)
	}
	return err.Error()
}

// check says what is wrong with a configuration.
func (c *config) check(data []byte) error {
	var given map[string]json.RawMessage
	if err := json.Unmarshal(data, &given); err != nil {
		return types.NewError(types.ErrDecodingFailure, "cannot decode the network configuration", err.Error())
	}
	var unknown []string
	for k := range given {
		if !slices.Contains(keys, k) && !strings.HasPrefix(k, "cni.dev/") {
			unknown = append(unknown, strconv.Quote(k))
		}
	}
	slices.Sort(unknown)
	switch {
	case len(unknown) > 0:
		return invalid("unknown key %s", strings.Join(unknown, ", "))
	case c.HairpinMode && c.PromiscMode:
		return invalid("hairpinMode and promiscMode: one of them only")
	case c.MTU < 0 || c.MTU > 0 && c.MTU < 576 || c.MTU > 65520:
		return invalid("mtu: %d: must be between 576 and 65520, or 0 for the gateway's", c.MTU)
	case !slices.Contains([]string{"", "auto", TAP, Veth}, c.Attach):
		return invalid("attach: %q is none of auto, tap, veth", c.Attach)
	case c.Socket != "" && !filepath.IsAbs(c.Socket):
		return invalid("socket: %q is no absolute path", c.Socket)
	case c.Vlan != 0:
		return unsupported("vlan", c.Vlan)
	case len(c.VlanTrunk) > 0:
		return unsupported("vlanTrunk", c.VlanTrunk)
	case c.PortIsolation:
		return unsupported("portIsolation", true)
	case c.DisableInterface:
		return unsupported("disableContainerInterface", true)
	}
	if b := c.RuntimeConfig.Bandwidth; b != nil && min(b.IngressRate, b.EgressRate, b.IngressBurst, b.EgressBurst) < 0 {
		return invalid("runtimeConfig.bandwidth: rates and bursts are not negative")
	}
	for _, ns := range c.DNS.Nameservers {
		if _, err := netip.ParseAddr(ns); err != nil {
			return invalid("dns.nameservers: %v", err)
		}
	}
	if mac := c.mac(); mac != "" {
		if m, err := net.ParseMAC(mac); err != nil || len(m) != 6 || m[0]&1 != 0 {
			return invalid("MAC %q is none of an Ethernet interface", mac)
		}
	}
	_, err := c.wantedIPs()
	return err
}

// mac is the one that is asked for, in rising order of who is heard.
func (c *config) mac() string {
	return cmp.Or(string(c.env.MAC), c.Args.CNI.MAC, c.RuntimeConfig.MAC)
}

// wantedIPs are the addresses that are asked for, with or without a length.
func (c *config) wantedIPs() (addrs []netip.Addr, err error) {
	var list []string
	if c.env.IP != "" {
		list = strings.Split(string(c.env.IP), ",")
	}
	for _, s := range slices.Concat(list, c.Args.CNI.IPs, c.RuntimeConfig.IPs) {
		bare, _, _ := strings.Cut(s, "/")
		a, err := netip.ParseAddr(bare)
		if err != nil {
			return nil, invalid("address %q that is asked for: %v", s, err)
		}
		if a = a.Unmap(); !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

// socketPath is where the gateway listens.
func (c *config) socketPath() string {
	if c.Socket != "" {
		return c.Socket
	}
	return control.SocketPath(cmp.Or(c.Instance, "default"))
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// identity is the pod that the container is: what Kubernetes says, else a name
// that follows from the container's.
func (c *config) identity(args *skel.CmdArgs) (namespace, name string) {
	namespace = cmp.Or(string(c.env.K8S_POD_NAMESPACE), "default")
	if c.env.K8S_POD_NAME != "" {
		return namespace, string(c.env.K8S_POD_NAME)
	}
	id := args.ContainerID
	name = strings.Trim(notInNames.ReplaceAllString(strings.ToLower(id), "-"), "-")
	if name != id || len(name) > 63 {
		sum := sha256.Sum256([]byte(id))
		name = strings.TrimRight(name[:min(len(name), 54)], "-") + fmt.Sprintf("-%x", sum[:4])
	}
	return namespace, strings.TrimLeft(name, "-")
}

// request is what the gateway is asked.
func (c *config) request(args *skel.CmdArgs) control.AttachRequest {
	q := control.AttachRequest{
		Container: args.ContainerID, IfName: args.IfName, Network: c.Name, Netns: args.Netns, UID: string(c.env.K8S_POD_UID),
		MAC: c.mac(), MTU: c.MTU, Kind: strings.TrimPrefix(c.Attach, "auto"),
		HostPorts: c.RuntimeConfig.PortMappings, Aliases: c.RuntimeConfig.Aliases, Labels: map[string]string{},
	}
	q.Namespace, q.Pod = c.identity(args)
	for _, l := range c.Args.CNI.Labels {
		q.Labels[l.Key] = l.Value
	}
	if b := c.RuntimeConfig.Bandwidth; b != nil {
		var faults []string
		if b.IngressRate > 0 {
			faults = append(faults, fmt.Sprintf("rate=%d", b.IngressRate))
		}
		if b.EgressRate > 0 {
			faults = append(faults, fmt.Sprintf("rate-from=%d", b.EgressRate))
		}
		if len(faults) > 0 {
			faults = append(faults, "queue=100ms") // the rate is to slow senders down, not to fill memory
		}
		q.Faults = strings.Join(faults, ",")
	}
	return q
}

// strictly decodes JSON that may have no unknown keys.
func strictly(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// installed says whether a plugin is found on CNI_PATH.
func installed(plugin string) bool {
	for _, dir := range filepath.SplitList(os.Getenv("CNI_PATH")) {
		if st, err := os.Stat(filepath.Join(dir, plugin)); err == nil && st.Mode().IsRegular() {
			return true
		}
	}
	return false
}
