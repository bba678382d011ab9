package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "rewrite docs/configuration.md")

const configurationPage = "../../docs/configuration.md"

func TestConfigurationPageListsEverySetting(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Configuration\n\n" +
		"podgate takes its settings, in rising order, from the defaults below, from `podgate.yaml` (beside the manifests, or `--config FILE`), from the environment, and from `--set KEY=VALUE`. " +
		"An unknown key is an error. `podgate config` prints the effective values and where each came from.\n\n" +
		"| Key | Environment | Default | Meaning |\n|---|---|---|---|\n")
	for _, s := range settings {
		env := "`" + envName(s.Key) + "`"
		if s.set == nil {
			env = ""
		}
		def := fmt.Sprint(s.Default)
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s.Key, env, def, s.Doc)
	}
	b.WriteString("\nLists are separated by commas; in `podgate.yaml` they may be YAML lists. An example:\n\n" +
		"```yaml\ndns:\n  ttl: 5\ningress:\n  http: 127.0.0.1:9080\npods:\n  attach: veth\nimages:\n  nginx:1.27: [podgate, workload, http, --port, \"80\"]\n```\n")
	if *update {
		if err := os.WriteFile(configurationPage, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(configurationPage)
	if err != nil {
		t.Fatal(err)
	}
	if want := b.String(); string(got) != want {
		t.Errorf("docs/configuration.md does not match the settings; run go test ./cmd/podgate -run Configuration -update")
	}
}

func configFlags(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	addConfigFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs
}

func TestConfigurationPrecedenceIsDefaultFileEnvironmentFlag(t *testing.T) {
	dir := t.TempDir()
	file := "dns:\n  ttl: 7\npods:\n  mtu: 1500\n  cidrs: [10.1.0.0/16]\nflows:\n  max: 1000\nimages:\n  Example.com/App:V1: [sleep, \"5\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "podgate.yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PODGATE_PODS_MTU", "1400")
	t.Setenv("PODGATE_FLOWS_MAX", "2000")
	t.Setenv("PODGATE_DNS_RANDOM_CASE", "true")
	cfg, from, err := loadConfig(configFlags(t, "--set", "flows.max=3000"), "", []string{dir})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.DNSTTL != 7 || cfg.MTU != 1400 || cfg.MaxFlows != 3000 || cfg.LogLevel != "info" {
		t.Errorf("got ttl %d, mtu %d, flows %d, log %s; want 7, 1400, 3000, info", cfg.DNSTTL, cfg.MTU, cfg.MaxFlows, cfg.LogLevel)
	}
	if got := cfg.Kube.PodCIDRs; len(got) != 1 || got[0].String() != "10.1.0.0/16" {
		t.Errorf("pods.cidrs: got %v", got)
	}
	if got := cfg.Images["Example.com/App:V1"]; len(got) != 2 || got[0] != "sleep" {
		t.Errorf("images keep their case: got %v", cfg.Images)
	}
	if got := cfg.Images[workloadImage]; len(got) != 2 {
		t.Errorf("the workload image stays when images are set: got %v", cfg.Images)
	}
	for key, want := range map[string]string{"dns.ttl": filepath.Join(dir, "podgate.yaml"), "pods.mtu": "PODGATE_PODS_MTU", "flows.max": "flag", "dns.random-case": "PODGATE_DNS_RANDOM_CASE", "log.level": "default"} {
		if got := from[key].From; got != want {
			t.Errorf("%s comes from %q, want %q", key, got, want)
		}
	}
}

func TestConfigurationRefusesWhatItDoesNotKnow(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		args []string
		want string
	}{
		"unknown key":        {"dns:\n  tll: 5\n", nil, `unknown key "dns.tll"`},
		"unknown top key":    {"dnss: 5\n", nil, `unknown key "dnss"`},
		"bad number":         {"dns:\n  ttl: soon\n", nil, `dns.ttl (from `},
		"bad CIDR":           {"", []string{"--set", "pods.cidrs=10.0.0.0"}, `"10.0.0.0" is not a CIDR`},
		"host bits":          {"", []string{"--set", "pods.cidrs=10.0.0.1/16"}, `did you mean 10.0.0.0/16`},
		"overlap":            {"", []string{"--set", "services.cidrs=10.244.1.0/24"}, `overlaps`},
		"two of one family":  {"", []string{"--set", "pods.cidrs=10.1.0.0/16,10.2.0.0/16"}, `at most one range a family`},
		"unknown flag key":   {"", []string{"--set", "no.such=1"}, `--set no.such: unknown key`},
		"bad egress mode":    {"egress:\n  mode: tunnel\n", nil, `"tunnel" is none of sockets, uplink, none`},
		"node ports swapped": {"", []string{"--set", "services.nodeports=40000-30000"}, `is not a range of ports`},
		"not YAML":           {"\tdns", nil, `podgate.yaml`},
		"images not a map":   {"images: [a]\n", nil, `images: must map`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "podgate.yaml"), []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := loadConfig(configFlags(t, c.args...), "", []string{dir})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}
