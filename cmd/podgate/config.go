package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"sigs.k8s.io/yaml"

	"podgate/dns"
	"podgate/kube"
	"podgate/stack"
	"podgate/stack/flow"
)

// config is the effective configuration, parsed.
type config struct {
	Kube           kube.Config
	MTU            int
	Attach         string
	Egress         string
	EgressAllow    []netip.Prefix
	UplinkName     string
	UplinkAddrs    []netip.Prefix // of one family each, with host bits
	UplinkNextHops []netip.Addr
	UplinkNAT      stack.Masquerade
	MappingTimeout time.Duration
	IngressHTTP    netip.AddrPort
	IngressHTTPS   netip.AddrPort
	HTTP3          bool           // where HTTPS is
	Trusted        []netip.Prefix // proxies in front of Ingress
	IngressDefault string         // Service that answers what no Ingress does
	Metrics        netip.AddrPort // of /metrics
	AccessLog      string         // file
	AccessJSON     bool
	PublishAddr    netip.Addr
	LowPortOffset  int
	Upstreams      []netip.AddrPort
	DNSPods        dns.PodMode
	DNSAutopath    bool
	DNSRandomCase  bool
	DNSCache       time.Duration // negative: none
	Corefile       string
	DNSTTL         uint32
	PolicyLog      string // file
	PolicyLogAll   bool
	PolicyFailOpen bool
	MaxFlows       int
	AllAcks        bool
	Spin           time.Duration
	FlowShare      float64
	Timeouts       flow.Timeouts
	Routes         []stack.Route
	Kubeconfig     string // file
	ThisNode       string
	Remember       bool // the state of the cluster
	NodeInterface  string
	NodeProxy      netip.AddrPort // for the node's own processes, where there is no NodeInterface
	NodeProxyDNS   netip.AddrPort // likewise
	Health         netip.AddrPort // of /healthz and /readyz
	Drain          time.Duration
	LogLevel       string
	StateDir       string
	ReadyTimeout   time.Duration
	Images         map[string][]string
}

// defaultImages stand for themselves: podgate is its own workload.
func defaultImages() map[string][]string {
	return map[string][]string{workloadImage: {"podgate", "workload"}}
}

// origin says where a value came from.
type origin struct{ Value, From string }

// loadConfig merges defaults, podgate.yaml, the environment and flags, in that
// rising order. file may be empty: then podgate.yaml beside the manifests is
// read if there is one.
func loadConfig(flags *pflag.FlagSet, file string, paths []string) (config, map[string]origin, error) {
	v := viper.New()
	for _, s := range settings {
		v.SetDefault(s.Key, s.Default)
		if s.set != nil {
			v.BindEnv(s.Key, envName(s.Key))
		}
	}
	c := config{Images: defaultImages()}
	if file == "" {
		file = besideManifests(paths)
	}
	if file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return c, nil, fmt.Errorf("configuration: %w", err)
		}
		images, err := readFileInto(v, file, data)
		if err != nil {
			return c, nil, err
		}
		for image, cmd := range images {
			c.Images[image] = cmd
		}
	}
	if err := applySets(v, flags); err != nil {
		return c, nil, err
	}
	from := map[string]origin{}
	for _, s := range settings {
		o := origin{text(v.Get(s.Key)), "default"}
		switch {
		case s.set == nil:
			if file != "" && v.InConfig(s.Key) {
				o = origin{text(c.Images), file}
			}
			from[s.Key] = o
			continue
		case setByFlag(flags, s.Key):
			o.From = "flag"
		case os.Getenv(envName(s.Key)) != "":
			o.From = envName(s.Key)
		case file != "" && v.InConfig(s.Key):
			o.From = file
		}
		from[s.Key] = o
		if err := s.set(&c, o.Value); err != nil {
			return c, nil, fmt.Errorf("configuration: %s (from %s): %w", s.Key, o.From, err)
		}
	}
	return c, from, c.check()
}

func (c *config) check() error {
	for _, ps := range []struct {
		key  string
		list []netip.Prefix
	}{{"pods.cidrs", c.Kube.PodCIDRs}, {"services.cidrs", c.Kube.ServiceCIDRs}} {
		if len(ps.list) == 0 {
			return fmt.Errorf("configuration: %s: at least one range is needed", ps.key)
		}
		if len(ps.list) > 2 || len(ps.list) == 2 && ps.list[0].Addr().Is4() == ps.list[1].Addr().Is4() {
			return fmt.Errorf("configuration: %s: at most one range a family", ps.key)
		}
	}
	for _, r := range c.Routes {
		for _, p := range slices.Concat(c.Kube.PodCIDRs, c.Kube.ServiceCIDRs) {
			if r.Prefix.Overlaps(p) {
				return fmt.Errorf("configuration: pods.routes: %s overlaps the cluster's own %s", r.Prefix, p)
			}
		}
	}
	for _, p := range c.Kube.PodCIDRs {
		for _, s := range c.Kube.ServiceCIDRs {
			if p.Overlaps(s) {
				return fmt.Errorf("configuration: pods.cidrs: %s overlaps services.cidrs %s", p, s)
			}
		}
		if p.Addr().BitLen()-p.Bits() < 4 {
			return fmt.Errorf("configuration: pods.cidrs: %s is too small", p)
		}
	}
	if _, err := newUplink(*c); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return nil
}

// readFileInto checks podgate.yaml against the table (unknown keys are errors)
// and hands it to viper. The images map is returned as it stands: viper would
// fold the case of its keys.
func readFileInto(v *viper.Viper, file string, data []byte) (map[string][]string, error) {
	var doc map[string]any
	if err := yaml.UnmarshalStrict(data, &doc); err != nil {
		return nil, fmt.Errorf("configuration: %s: %w", file, err)
	}
	var raw struct {
		Images map[string][]string `json:"images"`
	}
	if err := yaml.Unmarshal(data, &raw); err != nil {
		return nil, fmt.Errorf("configuration: %s: images: must map an image to a command, a list of strings", file)
	}
	if err := checkKeys(file, "", doc); err != nil {
		return nil, err
	}
	return raw.Images, v.MergeConfigMap(doc)
}

func checkKeys(file, prefix string, doc map[string]any) error {
	for k, val := range doc {
		key := prefix + k
		if key == "images" || slices.ContainsFunc(settings, func(s setting) bool { return s.Key == key }) {
			continue
		}
		inner, isMap := val.(map[string]any)
		if isMap && slices.ContainsFunc(settings, func(s setting) bool { return strings.HasPrefix(s.Key, key+".") }) {
			if err := checkKeys(file, key+".", inner); err != nil {
				return err
			}
			continue
		}
		return fmt.Errorf("configuration: %s: unknown key %q; `podgate config` lists the known ones", file, key)
	}
	return nil
}

// besideManifests finds podgate.yaml in, or next to, the first path that has one.
func besideManifests(paths []string) string {
	for _, p := range paths {
		if p == "-" {
			continue
		}
		dir := p
		if fi, err := os.Stat(p); err != nil || !fi.IsDir() {
			dir = filepath.Dir(p)
		}
		f := filepath.Join(dir, "podgate.yaml")
		if _, err := os.Stat(f); err == nil {
			return f
		}
	}
	return ""
}

// addConfigFlags gives a command --config and --set KEY=VALUE.
func addConfigFlags(fs *pflag.FlagSet) {
	fs.String("config", "", "configuration `file` (default podgate.yaml beside the manifests)")
	fs.StringArray("set", nil, "set a configuration `key=value`; may be repeated")
}

func applySets(v *viper.Viper, flags *pflag.FlagSet) error {
	for key, val := range sets(flags) {
		if !slices.ContainsFunc(settings, func(s setting) bool { return s.Key == key && s.set != nil }) {
			return usageError{fmt.Errorf("--set %s: unknown key; `podgate config` lists the known ones", key)}
		}
		v.Set(key, val)
	}
	return nil
}

func sets(flags *pflag.FlagSet) map[string]string {
	m := map[string]string{}
	if flags == nil {
		return m
	}
	all, _ := flags.GetStringArray("set")
	for _, kv := range all {
		k, val, _ := strings.Cut(kv, "=")
		m[strings.ToLower(k)] = val
	}
	return m
}

func setByFlag(flags *pflag.FlagSet, key string) bool {
	_, ok := sets(flags)[key]
	return ok
}

// envName is the environment variable of a setting; shells know no dots and hyphens.
func envName(key string) string {
	return "PODGATE_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
}

// text writes a value as settings parse it: lists joined by commas.
func text(v any) string {
	switch v := v.(type) {
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			parts[i] = fmt.Sprint(e)
		}
		return strings.Join(parts, ",")
	case map[string][]string:
		var parts []string
		for image, cmd := range v {
			parts = append(parts, image+": ["+strings.Join(cmd, ", ")+"]")
		}
		slices.Sort(parts)
		return strings.Join(parts, "; ")
	}
	return fmt.Sprint(v)
}

func newConfigCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config [PATH...]",
		Short: "Print the effective configuration and where each value came from",
		Example: `  podgate config
  podgate config examples/shop
  PODGATE_DNS_TTL=5 podgate config --set pods.mtu=1500`,
	}
	out := outputFlag(cmd.Flags(), "table", "json")
	addConfigFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, p := range args {
			if _, err := os.Stat(p); err != nil && p != "-" {
				return fmt.Errorf("%s: %w", p, errors.Unwrap(err))
			}
		}
		file, _ := cmd.Flags().GetString("config")
		_, from, err := loadConfig(cmd.Flags(), file, args)
		if err != nil {
			return err
		}
		if *out == "json" {
			type row struct{ Key, Value, From, Doc string }
			var rows []row
			for _, s := range settings {
				rows = append(rows, row{s.Key, from[s.Key].Value, from[s.Key].From, s.Doc})
			}
			return printJSON(cmd.OutOrStdout(), rows)
		}
		t := newTable(cmd.OutOrStdout(), "KEY", "VALUE", "FROM")
		for _, s := range settings {
			t.row(s.Key, from[s.Key].Value, from[s.Key].From)
		}
		return t.flush()
	}
	return cmd
}

// usageError makes the process exit 2 instead of 1.
type usageError struct{ error }

func (e usageError) Unwrap() error { return errors.Unwrap(e.error) }
