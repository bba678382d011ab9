package pod

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

// volume is a prepared volume of a pod.
type volume struct {
	source string         // what is bound
	files  map[string]vol // of a volume made from objects, as last written
	dated  bool           // files may change
}

// vol is one file of a volume.
type vol struct {
	content string
	mode    fs.FileMode
}

// prepareVolumes makes every volume of the pod.
func (w *worker) prepareVolumes() error {
	w.volumes = map[string]volume{}
	for _, v := range w.pod.Spec.Volumes {
		source := filepath.Join(w.dir, "volumes", v.Name)
		vol := volume{source: source}
		var err error
		switch {
		case v.EmptyDir != nil, v.Ephemeral != nil:
			err = makeOpen(source)
		case v.HostPath != nil:
			vol.source = v.HostPath.Path
			_, err = os.Stat(vol.source)
		case v.PersistentVolumeClaim != nil:
			vol.source = filepath.Join(w.r.dir, "claims", w.name.Namespace, v.PersistentVolumeClaim.ClaimName)
			err = makeOpen(vol.source)
		case v.ConfigMap != nil, v.Secret != nil, v.Projected != nil, v.DownwardAPI != nil:
			vol.dated = true
			if vol.files, err = w.content(w.r.wanted(), &v); err == nil {
				err = writeVolume(source, vol.files)
			}
		default:
			err = errors.New("this kind of volume is not supported")
		}
		if err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
		w.volumes[v.Name] = vol
	}
	return nil
}

// makeOpen makes a directory that everybody may write to.
func makeOpen(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o777)
}

// refreshVolumes follows changes of ConfigMaps and Secrets.
func (w *worker) refreshVolumes() {
	for i := range w.pod.Spec.Volumes {
		v := &w.pod.Spec.Volumes[i]
		have, ok := w.volumes[v.Name]
		if !ok || !have.dated {
			continue
		}
		w.needs = true
		files, err := w.content(w.r.wanted(), v)
		if err != nil || maps.Equal(files, have.files) {
			continue // as the kubelet: what was mounted stays
		}
		if err := writeVolume(have.source, files); err != nil {
			w.r.cfg.Log.Error("write volume", "pod", w.name, "volume", v.Name, "err", err)
			continue
		}
		have.files = files
		w.volumes[v.Name] = have
	}
}

// mounts are a container's volumeMounts as bind mounts.
func (w *worker) mounts(c *corev1.Container) (binds []bind) {
	for _, m := range c.VolumeMounts {
		v, ok := w.volumes[m.Name]
		if !ok {
			continue
		}
		source := v.source
		if m.SubPath != "" {
			source = filepath.Join(source, filepath.Join("/", m.SubPath))
			if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) && !v.dated {
				makeOpen(source)
			}
		}
		binds = append(binds, bind{Source: source, Target: m.MountPath, ReadOnly: m.ReadOnly || v.dated})
	}
	// A mount within another comes after it.
	slices.SortStableFunc(binds, func(a, b bind) int { return cmp.Compare(len(a.Target), len(b.Target)) })
	return binds
}

// content is what the files of a volume made from objects say.
func (w *worker) content(st *kube.State, v *corev1.Volume) (map[string]vol, error) {
	files := map[string]vol{}
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		return files, w.configMap(st, s.Name, s.Items, s.Optional, s.DefaultMode, files)
	case v.Secret != nil:
		s := v.Secret
		return files, w.secret(st, s.SecretName, s.Items, s.Optional, s.DefaultMode, files)
	case v.DownwardAPI != nil:
		return files, w.downward(v.DownwardAPI.Items, v.DownwardAPI.DefaultMode, files)
	}
	for _, s := range v.Projected.Sources {
		var err error
		switch mode := v.Projected.DefaultMode; {
		case s.ConfigMap != nil:
			err = w.configMap(st, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional, mode, files)
		case s.Secret != nil:
			err = w.secret(st, s.Secret.Name, s.Secret.Items, s.Secret.Optional, mode, files)
		case s.DownwardAPI != nil:
			err = w.downward(s.DownwardAPI.Items, mode, files)
		default:
			err = errors.New("this kind of projected source is not supported")
		}
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

func (w *worker) configMap(st *kube.State, name string, items []corev1.KeyToPath, optional *bool, mode *int32, into map[string]vol) error {
	o := st.ConfigMaps[kube.Name{Namespace: w.name.Namespace, Name: name}]
	if o == nil {
		if optional != nil && *optional {
			return nil
		}
		return fmt.Errorf("configmap %q not found", name)
	}
	data := maps.Clone(o.Data)
	if data == nil {
		data = map[string]string{}
	}
	for k, v := range o.BinaryData {
		data[k] = string(v)
	}
	return project("configmap "+name, data, items, optional, mode, into)
}

func (w *worker) secret(st *kube.State, name string, items []corev1.KeyToPath, optional *bool, mode *int32, into map[string]vol) error {
	o := st.Secrets[kube.Name{Namespace: w.name.Namespace, Name: name}]
	if o == nil {
		if optional != nil && *optional {
			return nil
		}
		return fmt.Errorf("secret %q not found", name)
	}
	data := map[string]string{}
	for k, v := range o.Data {
		data[k] = string(v)
	}
	for k, v := range o.StringData {
		data[k] = v
	}
	return project("secret "+name, data, items, optional, mode, into)
}

// project turns an object's keys into files: all of them, or those in items.
func project(object string, data map[string]string, items []corev1.KeyToPath, optional *bool, mode *int32, into map[string]vol) error {
	if len(items) == 0 {
		for k, v := range data {
			into[k] = vol{v, fileMode(mode)}
		}
		return nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return fmt.Errorf("%s references non-existent key: %s", object, it.Key)
		}
		m := mode
		if it.Mode != nil {
			m = it.Mode
		}
		into[it.Path] = vol{v, fileMode(m)}
	}
	return nil
}

func fileMode(mode *int32) fs.FileMode {
	if mode == nil {
		return 0o644
	}
	return fs.FileMode(*mode) & fs.ModePerm
}

// downward writes fields of the pod.
func (w *worker) downward(items []corev1.DownwardAPIVolumeFile, mode *int32, into map[string]vol) error {
	for _, it := range items {
		if it.FieldRef == nil {
			return fmt.Errorf("%s: resourceFieldRef is not supported", it.Path)
		}
		v, err := w.field(it.FieldRef.FieldPath)
		if err != nil {
			return err
		}
		m := mode
		if it.Mode != nil {
			m = it.Mode
		}
		into[it.Path] = vol{v, fileMode(m)}
	}
	return nil
}

// field is a field of the pod as a downwardAPI volume shows it.
func (w *worker) field(fieldPath string) (string, error) {
	p := w.pod
	name, key, subscript := strings.Cut(strings.TrimSuffix(fieldPath, "']"), "['")
	switch {
	case name == "metadata.name":
		return p.Name, nil
	case name == "metadata.namespace":
		return p.Namespace, nil
	case name == "metadata.uid":
		return string(p.UID), nil
	case name == "metadata.labels" && subscript:
		return p.Labels[key], nil
	case name == "metadata.annotations" && subscript:
		return p.Annotations[key], nil
	case name == "metadata.labels":
		return formatMap(p.Labels), nil
	case name == "metadata.annotations":
		return formatMap(p.Annotations), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %s", fieldPath)
}

func formatMap(m map[string]string) string {
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, fmt.Sprintf("%s=%q", k, m[k]))
	}
	return strings.Join(lines, "\n")
}

// writeVolume makes dir show files, all of them old or all of them new, as the
// kubelet does: entries link into ..data, which links to a directory that is
// written anew and switched to by a rename.
func writeVolume(dir string, files map[string]vol) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(dir, "..")
	if err != nil {
		return err
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return err
	}
	tops := map[string]bool{}
	for name, f := range files {
		name = path.Clean(name)
		if !filepath.IsLocal(name) {
			return fmt.Errorf("path %q: must be relative and stay below the volume", name)
		}
		full := filepath.Join(fresh, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(full, []byte(f.content), 0o600); err != nil {
			return err
		}
		if err := os.Chmod(full, f.mode); err != nil {
			return err
		}
		top, _, _ := strings.Cut(name, "/")
		tops[top] = true
	}
	data := filepath.Join(dir, "..data")
	old, _ := os.Readlink(data)
	temp := filepath.Join(dir, "..data_tmp")
	if err := os.Symlink(filepath.Base(fresh), temp); err != nil {
		return err
	}
	if err := os.Rename(temp, data); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") && !tops[e.Name()] {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	for top := range tops {
		err := os.Symlink(filepath.Join("..data", top), filepath.Join(dir, top))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if old != "" {
		return os.RemoveAll(filepath.Join(dir, old))
	}
	return nil
}
