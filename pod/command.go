package pod

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"podgate/kube"
)

// environment is what the container's processes see, and the command that it
// runs, nil if it idles.
func (c *container) environment() (env, argv []string, err error) {
	spec := c.spec()
	w := c.w
	vars, err := kube.ContainerEnv(w.r.wanted(), w.pod, spec)
	if err != nil {
		return nil, nil, err
	}
	host, err := hostname(w.pod, w.r.cfg.ClusterDomain)
	if err != nil {
		return nil, nil, err
	}
	env = mergeEnv([]string{
		"PATH=" + w.r.path,
		"HOSTNAME=" + host,
		"HOME=" + cmp.Or(os.Getenv("HOME"), "/"),
	}, vars)
	command, args := kube.ExpandCommand(spec, env)
	if len(command) == 0 {
		if command = w.r.image(spec.Image); len(command) == 0 {
			return env, nil, nil
		}
	}
	return env, slices.Concat(command, args), nil
}

// image is the command that the configuration lets stand for an image: of the
// whole reference, or of it without tag and digest.
func (r *Runtime) image(ref string) []string {
	if cmd, ok := r.cfg.Images[ref]; ok {
		return cmd
	}
	ref, _, _ = strings.Cut(ref, "@")
	if cmd, ok := r.cfg.Images[ref]; ok {
		return cmd
	}
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref = ref[:i]
	}
	return r.cfg.Images[ref]
}

// mergeEnv lets later values replace earlier ones of the same name.
func mergeEnv(base, over []string) []string {
	at := map[string]int{}
	var out []string
	for _, kv := range slices.Concat(base, over) {
		name, _, _ := strings.Cut(kv, "=")
		if i, ok := at[name]; ok {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	return out
}

// containerPath is the usual PATH, whatever else the user has, and podgate.
func containerPath(host, self string) string {
	dirs := []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	for _, d := range append(filepath.SplitList(host), self) {
		if filepath.IsAbs(d) && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return strings.Join(dirs, ":")
}

// process describes a process in this container.
func (c *container) process(argv, env []string) *startSpec {
	spec := c.spec()
	s := &startSpec{
		Sandbox:   c.w.id(),
		Container: c.name,
		Argv:      argv,
		Env:       env,
		Dir:       spec.WorkingDir,
		Binds:     c.w.mounts(spec),
	}
	if sc := spec.SecurityContext; sc != nil {
		if sc.Privileged != nil && *sc.Privileged {
			s.Caps = []string{"ALL"}
		}
		if sc.Capabilities != nil {
			for _, n := range sc.Capabilities.Add {
				s.Caps = append(s.Caps, string(n))
			}
			for _, n := range sc.Capabilities.Drop {
				s.DropCaps = append(s.DropCaps, string(n))
			}
		}
		s.NoNewPrivs = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
	}
	return s
}
