package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// Images are a layer each: podgate at /podgate, and busybox with its names.
// Their tags are not "latest", which kubelets would look for elsewhere.
const (
	workloadImage = "podgate.dev/workload"
	gatewayImage  = "podgate.dev/podgate"
	pauseImage    = "podgate.dev/pause"
	tag           = ":test"
)

// writeImages writes an archive of the images for `ctr images import`.
func writeImages(file, podgate string) error {
	layer, err := layerOf(podgate)
	if err != nil {
		return err
	}
	blobs := map[string][]byte{}
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	blob := func(kind string, content []byte) descriptor {
		digest := fmt.Sprintf("%x", sha256.Sum256(content))
		blobs["blobs/sha256/"+digest] = content
		return descriptor{MediaType: "application/vnd.oci.image." + kind, Digest: "sha256:" + digest, Size: len(content)}
	}
	object := func(kind string, v any) descriptor {
		content, _ := json.Marshal(v)
		return blob(kind, content)
	}
	layerBlob := blob("layer.v1.tar", layer)
	var manifests []descriptor
	for _, image := range []struct {
		name       string
		entrypoint []string
	}{{workloadImage, []string{"/podgate", "workload"}}, {gatewayImage, []string{"/podgate"}}, {pauseImage, []string{"/podgate", "workload", "pause"}}} {
		config := object("config.v1+json", map[string]any{
			"architecture": runtime.GOARCH, "os": "linux",
			"config": map[string]any{"Entrypoint": image.entrypoint, "Env": []string{"PATH=/bin:/"}},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerBlob.Digest}},
		})
		m := object("manifest.v1+json", map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []any{layerBlob}})
		m.Annotations = map[string]string{"io.containerd.image.name": image.name + tag, "org.opencontainers.image.ref.name": tag[1:]}
		manifests = append(manifests, m)
	}
	index, _ := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": manifests})
	blobs["index.json"] = index
	blobs["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	t := tar.NewWriter(f)
	for name, content := range blobs {
		if err := addFile(t, name, 0o644, content); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return f.Close()
}

func addFile(t *tar.Writer, name string, mode int64, content []byte) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := t.Write(content)
	return err
}

// layerOf is the one layer of all images.
func layerOf(podgate string) ([]byte, error) {
	var layer bytes.Buffer
	t := tar.NewWriter(&layer)
	box, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "run/", "proc/", "sys/", "dev/"} {
		if err := t.WriteHeader(&tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
			return nil, err
		}
	}
	for name, from := range map[string]string{"podgate": podgate, "bin/busybox": box} {
		content, err := os.ReadFile(from)
		if err == nil {
			err = addFile(t, name, 0o755, content)
		}
		if err != nil {
			return nil, err
		}
	}
	for name := range strings.FieldsSeq("cat echo ip ls nc nslookup pidof ping rm sh sleep socat touch traceroute wget") {
		if err := t.WriteHeader(&tar.Header{Name: "bin/" + name, Linkname: "busybox", Typeflag: tar.TypeSymlink}); err != nil {
			return nil, err
		}
	}
	err = t.Close()
	return layer.Bytes(), err
}

// importImages makes them known to a node's containerd.
func (n *node) importImages(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := n.command("ctr", "-n", "k8s.io", "images", "import", "-")
	cmd.Stdin = io.Reader(f)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import images: %w: %s", err, out)
	}
	return nil
}
